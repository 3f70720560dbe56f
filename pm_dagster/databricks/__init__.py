"""The Databricks side: the official SDK behind the DatabricksRuns port.

Signing in, one HTTP attempt a call, and what its outcome means. Retries, rates and decisions are not made here.
"""
