"""A control table and a workspace on one machine, for demos, development and tests.

Binds to loopback only. Nothing outside this package and the command line may import it.
"""
