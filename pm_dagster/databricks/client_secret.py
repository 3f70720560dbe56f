"""Signing in with a client id and its secret, as a Databricks or as an Azure service principal.

The SDK can (0.30 to 0.60, ``oauth.py``), but it waits for a token endpoint without end, sends the secret after a
redirect, and makes the same ValueError of a wrong secret and of an endpoint that is down.

Put here: which tokens, in which headers: https://docs.databricks.com/aws/en/dev-tools/auth/oauth-m2m and
https://learn.microsoft.com/en-us/azure/databricks/dev-tools/service-prin-aad-token. Keep out: the request itself
(``token_endpoint.py``).
"""

from __future__ import annotations

from collections.abc import Callable

from databricks.sdk.core import Config
from databricks.sdk.credentials_provider import CredentialsStrategy, DefaultCredentials

from pm_dagster.databricks import azure
from pm_dagster.net.token_endpoint import TokenEndpoint, discovered

_OAUTH, _AZURE = "oauth-m2m", "azure-client-secret"
_PUBLIC_DIRECTORY = "https://login.microsoftonline.com/"

Headers = Callable[[], dict[str, str]]


class OurTokens(CredentialsStrategy):
    """The SDK's choice of a way to sign in, but what goes by a client secret is asked for here.

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

        Raises ConfigurationError or WorkspaceUnavailable when the workspace does not say where its tokens are.
        """
        if _by(cfg, _OAUTH, cfg.client_id, cfg.client_secret):
            self._ours = _OAUTH
            return self._oauth(cfg)
        if _by(cfg, _AZURE, cfg.azure_client_id, cfg.azure_client_secret, cfg.azure_tenant_id):
            self._ours = _AZURE
            return self._azure(cfg)
        others: Headers = self._others(cfg)
        return others

    def _oauth(self, cfg: Config) -> Headers:
        timeout = float(cfg.http_timeout_seconds or 60)
        endpoint = TokenEndpoint(discovered(cfg.host, timeout), timeout, allow_http=self._allow_http)
        tokens = endpoint.tokens({"scope": "all-apis"}, basic=(cfg.client_id, cfg.client_secret))
        return lambda: {"Authorization": f"Bearer {tokens.get()}"}

    def _azure(self, cfg: Config) -> Headers:
        directory = getattr(cfg.arm_environment, "active_directory_endpoint", _PUBLIC_DIRECTORY)
        timeout = float(cfg.http_timeout_seconds or 60)
        url = f"{directory}{cfg.azure_tenant_id}/oauth2/token"
        endpoint = TokenEndpoint(url, timeout, allow_http=self._allow_http)
        who = {"client_id": cfg.azure_client_id, "client_secret": cfg.azure_client_secret}
        return azure.headers(cfg, lambda resource: endpoint.tokens({**who, "resource": resource}).get)


def _by(cfg: Config, way: str, *needed: str | None) -> bool:
    """True when the configuration has what this way needs, and chooses no other."""
    chosen = cfg.auth_type == way or not (cfg.auth_type or cfg.token or cfg.username)
    return bool(chosen and cfg.host and all(needed))
