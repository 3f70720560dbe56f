"""Tests of settings and masking."""
