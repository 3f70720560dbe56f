"""Signing in to the workspace as an Azure managed identity.

The SDK cannot: from 0.30 to 0.60 ARM_USE_MSI is an attribute that no provider reads.

Put here: which identity. Keep out: its headers (``azure.py``).
"""

from __future__ import annotations

from collections.abc import Callable

from databricks.sdk.core import Config
from databricks.sdk.credentials_provider import CredentialsStrategy

from pm_dagster.config import entra
from pm_dagster.databricks import azure
from pm_dagster.databricks.sign_in import MANAGED_IDENTITY


class ManagedIdentity(CredentialsStrategy):
    """Takes tokens of the managed identity; ARM_CLIENT_ID names it when the machine has several."""

    def auth_type(self) -> str:
        """The name by which the Databricks CLI knows this way."""
        return MANAGED_IDENTITY

    def __call__(self, cfg: Config) -> Callable[[], dict[str, str]]:
        """The headers of a request."""
        identity = entra.managed_identity(cfg.azure_client_id or None)
        return azure.headers(cfg, lambda resource: lambda: str(identity.get_token(f"{resource}/.default").token))
