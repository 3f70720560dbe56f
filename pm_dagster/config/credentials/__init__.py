"""Where credentials come from: a value, a file, Azure Key Vault, a Databricks secret scope.

Put here: turning references among the environment variables into values, and remembering where each came from. Keep
out: what the values are used for. Every call looks again, so a rotated secret needs no restart.
"""

from pm_dagster.config.credentials.resolution import Failure, Origin, Resolved, looked_up, resolved
from pm_dagster.config.credentials.variables import DATABASE, WORKSPACE

__all__ = ["DATABASE", "WORKSPACE", "Failure", "Origin", "Resolved", "looked_up", "resolved"]
