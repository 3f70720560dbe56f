"""Tests of the networking helpers."""
