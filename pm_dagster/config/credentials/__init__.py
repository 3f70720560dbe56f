"""Where credentials come from: a value, a file, Azure Key Vault, a Databricks secret scope.

``resolved`` takes a mapping of variables and gives one in which every reference is replaced by its secret, and where
each came from. Every call looks again, so a rotated secret needs no restart.
"""

from pm_dagster.config.credentials.resolution import Failure, Origin, Resolved, looked_up, resolved
from pm_dagster.config.credentials.variables import DATABASE, WORKSPACE

__all__ = ["DATABASE", "WORKSPACE", "Failure", "Origin", "Resolved", "looked_up", "resolved"]
