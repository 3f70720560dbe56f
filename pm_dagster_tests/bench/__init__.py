"""Measurements, run by ``make bench``; the tests here see only that they work."""
