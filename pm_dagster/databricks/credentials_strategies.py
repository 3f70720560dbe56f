"""Three ways of signing in that the SDK lacks or does badly, as credentials strategies of the SDK.

* A client id and its secret, as a Databricks service principal (``oauth-m2m``) or as one of Azure
  (``azure-client-secret``). The SDK can (0.30 to 0.60, ``oauth.py``), but it waits for a token endpoint without end,
  sends the secret after a redirect, and makes the same ValueError of a wrong secret and of an endpoint that is down.
* An Azure managed identity (``azure-msi``). The SDK cannot: from 0.30 to 0.60 ARM_USE_MSI is an attribute that no
  provider reads.

Sources: https://docs.databricks.com/aws/en/dev-tools/auth/oauth-m2m,
https://learn.microsoft.com/en-us/azure/databricks/dev-tools/auth/azure-mi and
https://learn.microsoft.com/en-us/azure/databricks/dev-tools/service-prin-aad-token#use-a-microsoft-entra-id-access-token.
"""

from __future__ import annotations

from collections.abc import Callable

from databricks.sdk.core import Config
from databricks.sdk.credentials_provider import CredentialsStrategy, DefaultCredentials

from pm_dagster.config import entra
from pm_dagster.net.token_endpoint import TokenEndpoint, discovered

OAUTH, AZURE_SECRET, MANAGED_IDENTITY = "oauth-m2m", "azure-client-secret", "azure-msi"
#: The resource id of Azure Databricks, the same in every cloud: databricks-sdk 0.60, environments.py.
_DATABRICKS = "2ff814a6-3304-4ab8-85cb-cd0e6f879c1d"
_PUBLIC_MANAGEMENT = "https://management.core.windows.net/"
_PUBLIC_DIRECTORY = "https://login.microsoftonline.com/"
_DEFAULT_SECONDS = 60

#: Gives the headers of a request, with a token that is good now.
Headers = Callable[[], dict[str, str]]


class ClientSecret(CredentialsStrategy):
    """Asks for the tokens of a client id and secret itself, and leaves every other way to the SDK.

    ``allow_http`` lets the secret go to an endpoint on another machine without TLS.
    """

    def __init__(self, *, allow_http: bool) -> None:
        self._allow_http = allow_http
        self._others = DefaultCredentials()
        self._ours = ""

    def auth_type(self) -> str:
        """The SDK's name for the way."""
        return self._ours or self._others.auth_type()

    def __call__(self, cfg: Config) -> Headers:
        """The headers of a request.

        Raises:
            ConfigurationError: The workspace has no token endpoint.
            WorkspaceUnavailable: The workspace does not say where its tokens are.
        """
        if _by(cfg, OAUTH, cfg.client_id, cfg.client_secret):
            self._ours = OAUTH
            return self._oauth(cfg)
        if _by(cfg, AZURE_SECRET, cfg.azure_client_id, cfg.azure_client_secret, cfg.azure_tenant_id):
            self._ours = AZURE_SECRET
            return self._azure(cfg)
        others: Headers = self._others(cfg)
        return others

    def _oauth(self, cfg: Config) -> Headers:
        timeout = float(cfg.http_timeout_seconds or _DEFAULT_SECONDS)
        endpoint = TokenEndpoint(discovered(cfg.host, timeout), timeout, allow_http=self._allow_http)
        tokens = endpoint.tokens({"scope": "all-apis"}, basic=(cfg.client_id, cfg.client_secret))
        return lambda: {"Authorization": f"Bearer {tokens.get()}"}

    def _azure(self, cfg: Config) -> Headers:
        directory = getattr(cfg.arm_environment, "active_directory_endpoint", _PUBLIC_DIRECTORY)
        timeout = float(cfg.http_timeout_seconds or _DEFAULT_SECONDS)
        url = f"{directory}{cfg.azure_tenant_id}/oauth2/token"
        endpoint = TokenEndpoint(url, timeout, allow_http=self._allow_http)
        who = {"client_id": cfg.azure_client_id, "client_secret": cfg.azure_client_secret}
        return _azure_headers(cfg, lambda resource: endpoint.tokens({**who, "resource": resource}).get)


class ManagedIdentity(CredentialsStrategy):
    """Takes tokens of the managed identity; ARM_CLIENT_ID names it when the machine has several."""

    def auth_type(self) -> str:
        """The name by which the Databricks CLI knows this way."""
        return MANAGED_IDENTITY

    def __call__(self, cfg: Config) -> Headers:
        """The headers of a request. Raises ConfigurationError without azure-identity."""
        identity = entra.managed_identity(cfg.azure_client_id or None)
        return _azure_headers(cfg, lambda resource: lambda: str(identity.get_token(f"{resource}/.default").token))


def _by(cfg: Config, way: str, *needed: str | None) -> bool:
    """True when the configuration has what this way needs, and chooses no other."""
    chosen = cfg.auth_type == way or not (cfg.auth_type or cfg.token or cfg.username)
    return bool(chosen and cfg.host and all(needed))


def _azure_headers(cfg: Config, tokens_for: Callable[[str], Callable[[], str]]) -> Headers:
    """The headers by which Azure Databricks knows an identity of Entra ID.

    ``tokens_for`` gives, for a resource, what gives a token for it now. A workspace that does not know the identity yet
    is told its own Azure resource id.
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
