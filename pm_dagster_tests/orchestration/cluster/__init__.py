"""Tests of the asset and job that start the deployed Databricks job."""
