"""The cluster's program: a dispatch on a Databricks cluster, without Dagster.

``process_manager`` is the file that the bundle's job runs, ``entry`` its steps, ``options`` its command line,
``spark_read`` the read by Spark, ``report`` what it shows. It needs only what Databricks Runtime 16.4 carries, and for
an Excel file the job's three libraries.
"""
