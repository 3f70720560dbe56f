"""The pass on a Databricks cluster, without Dagster.

Put here: the entry that the bundle's job runs, reading the view by Spark, the report file. Keep out: the pass itself
(``core.dispatch``). Needs only what Databricks Runtime 16.4 carries, and the job's three libraries for a report file.
"""
