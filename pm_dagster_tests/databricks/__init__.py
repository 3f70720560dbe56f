"""Tests of the Databricks side, against small HTTP servers on loopback."""
