"""Process Manager: empties a control table of waiting jobs into Databricks.

This package imports nothing, so that the cluster can load one part without the others:

* `core`: the decisions, plain Python
* `postgres`, `workspace`: the adapters to the control table and to the Jobs API
* `definitions`: what Dagster loads
* `cli`: the command `pm`
* `sandbox`: a Postgres server and a workspace on one machine; never imported by the rest
"""
