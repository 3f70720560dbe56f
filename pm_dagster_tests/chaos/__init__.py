"""The proof: dispatches that are killed, cut off and lied to, and what must hold afterwards; run by `make chaos`."""
