"""Tests of the command `pm` against a real database and a local workspace, in the tests' process where they can be."""
