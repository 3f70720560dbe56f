"""Where credentials come from: a value, a file, Azure Key Vault, a Databricks secret scope.

Put here: turning references among the environment variables into values, and remembering where each came from. Keep
out: what the values are used for. Nothing is kept: every call looks again, so a rotated secret needs no restart.
"""

from pm_dagster.credentials.resolution import Origin, Resolved, resolved

__all__ = ["Origin", "Resolved", "resolved"]
