"""Tests of the core: rules, pace, settings and the sending loop."""
