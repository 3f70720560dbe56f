"""Tests of starting the deployed job."""
