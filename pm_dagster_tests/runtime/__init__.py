"""Tests of what runs on the cluster, with the exact libraries of Databricks Runtime 16.4 (``make test-runtime``)."""
