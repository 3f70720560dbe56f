"""The headers by which Azure Databricks knows an identity of Entra ID.

Put here: which tokens go into which headers: https://learn.microsoft.com/en-us/azure/databricks/dev-tools/auth/azure-mi
and https://learn.microsoft.com/en-us/azure/databricks/dev-tools/service-prin-aad-token#use-a-microsoft-entra-id-access-token.
Keep out: where tokens come from.
"""

from __future__ import annotations

from collections.abc import Callable

from databricks.sdk.core import Config

#: The same in every cloud: databricks-sdk 0.60, environments.py.
_DATABRICKS = "2ff814a6-3304-4ab8-85cb-cd0e6f879c1d"
_PUBLIC_MANAGEMENT = "https://management.core.windows.net/"


def headers(cfg: Config, tokens_for: Callable[[str], Callable[[], str]]) -> Callable[[], dict[str, str]]:
    """The headers of a request; ``tokens_for`` gives, for a resource, what gives a token for it now.

    A workspace that does not know the identity yet is told its own Azure resource id.
    """
    databricks, resource = tokens_for(_DATABRICKS), cfg.azure_workspace_resource_id
    # None for a host that is not Azure's, whatever the SDK's annotation says.
    management = tokens_for(getattr(cfg.arm_environment, "service_management_endpoint", _PUBLIC_MANAGEMENT))

    def now() -> dict[str, str]:
        found = {"Authorization": f"Bearer {databricks()}"}
        if resource:
            found["X-Databricks-Azure-Workspace-Resource-Id"] = resource
            found["X-Databricks-Azure-SP-Management-Token"] = management()
        return found

    return now
