"""The core's ports in memory, with the rules of the real ones: ownership, generations, tokens and repair history."""
