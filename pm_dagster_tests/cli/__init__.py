"""Tests of the command pm, as processes of their own against a real database and a local workspace."""
