"""The Databricks side: the official SDK behind the DatabricksRuns port.

Signing in, one HTTP attempt a call, and what its outcome means. Retries, rates and decisions are not made here.
"""

from pm_dagster.databricks import sdk_package

# Before any module here imports a part of the SDK.
sdk_package.defer()
