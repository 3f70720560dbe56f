"""The decisions of Process Manager, in plain Python.

What a waiting job is, what a dispatch does with it, when a call is made again and when it is not. Dagster, SQL and
HTTP stay out: ``ports`` are all that this package knows of the outside, so the same pass runs under Dagster, in the
command line and on a Databricks cluster. ``service`` is where to start reading; docs/explanation/layout.md has the map.
"""
