"""Tests of the Postgres side, on a real server."""
