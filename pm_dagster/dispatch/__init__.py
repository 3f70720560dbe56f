"""The decisions of Process Manager, in plain Python.

Put here: what a waiting job is, what a dispatch does with it, when a call is repeated and when it is not.
Keep out: Dagster, SQL, HTTP. The ports in ``ports.py`` are all that this package knows of the outside, so the same
pass runs under Dagster, in the command line and on a Databricks cluster.
"""
