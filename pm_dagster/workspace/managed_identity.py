"""Signing in to the workspace as an Azure managed identity.

The SDK cannot: from 0.30 to 0.60 ARM_USE_MSI is an attribute that no provider reads.

Put here: which tokens Azure Databricks takes in which headers:
https://learn.microsoft.com/en-us/azure/databricks/dev-tools/auth/azure-mi and
https://learn.microsoft.com/en-us/azure/databricks/dev-tools/service-prin-aad-token#use-a-microsoft-entra-id-access-token
"""

from __future__ import annotations

from collections.abc import Callable

from databricks.sdk.core import Config
from databricks.sdk.credentials_provider import CredentialsStrategy

from pm_dagster import entra
from pm_dagster.workspace.sign_in import MANAGED_IDENTITY

#: The same in every cloud: databricks-sdk 0.60, environments.py.
_DATABRICKS = "2ff814a6-3304-4ab8-85cb-cd0e6f879c1d"
_PUBLIC_MANAGEMENT = "https://management.core.windows.net/"


class ManagedIdentity(CredentialsStrategy):
    """Takes tokens of the managed identity; ARM_CLIENT_ID names it when the machine has several."""

    def auth_type(self) -> str:
        """The name by which the Databricks CLI knows this way."""
        return MANAGED_IDENTITY

    def __call__(self, cfg: Config) -> Callable[[], dict[str, str]]:
        """The headers of a request. A workspace that does not know the identity yet is told its Azure resource id."""
        identity = entra.managed_identity(cfg.azure_client_id or None)
        resource = cfg.azure_workspace_resource_id
        # None for a host that is not Azure's, whatever the SDK's annotation says.
        management = getattr(cfg.arm_environment, "service_management_endpoint", _PUBLIC_MANAGEMENT)

        def headers() -> dict[str, str]:
            found = {"Authorization": f"Bearer {identity.get_token(f'{_DATABRICKS}/.default').token}"}
            if resource:
                found["X-Databricks-Azure-Workspace-Resource-Id"] = resource
                found["X-Databricks-Azure-SP-Management-Token"] = identity.get_token(f"{management}/.default").token
            return found

        return headers
