"""A workspace client from environment variables, the same for Dagster, the command line and the cluster.

Put here: what makes a host usable, and what a failed sign-in means. Keep out: the ways to sign in (``sign_in.py``) and
references to secrets, which ``pm_dagster.config.credentials`` has replaced in the variables that come in here.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import requests
from databricks.sdk import WorkspaceClient
from databricks.sdk.core import Config

from pm_dagster.config.masking import scrubbed
from pm_dagster.config.settings import Settings
from pm_dagster.databricks.client_secret import OurTokens
from pm_dagster.databricks.managed_identity import ManagedIdentity
from pm_dagster.databricks.sign_in import MANAGED_IDENTITY, WAYS, arguments, sign_in
from pm_dagster.errors import ConfigurationError, ProcessManagerError
from pm_dagster.net.exception_chain import exception_chain
from pm_dagster.net.hosts import is_here
from pm_dagster.net.token_endpoint import failure

_MESSAGE_LIMIT = 500
#: The ways for which nothing has to be found out about the host: no token of theirs comes through the SDK.
_KNOWN_WAYS = ("pat", "basic", "oauth-m2m", "azure-client-secret", MANAGED_IDENTITY)
#: Without DATABRICKS_HOST the SDK can find the workspace by these.
_HOSTED_BY = ("DATABRICKS_CONFIG_PROFILE", "DATABRICKS_AZURE_RESOURCE_ID", "DATABRICKS_RUNTIME_VERSION")
#: The SDK's words when no provider, or not the chosen one, has what it needs.
_NOTHING_FITS = "cannot configure default credentials"
_NO_HOST = "no workspace is configured: set DATABRICKS_HOST (and DATABRICKS_TOKEN or other DATABRICKS_*/ARM_*)"
_IN_CLEAR = (
    "DATABRICKS_HOST is {host}: our token would travel readable for everybody on the way; use https,"
    " or set PM_ALLOW_HTTP=true"
)


class _WithoutMetadata(Config):
    """Asks the host nothing about itself, which newer SDKs (0.162, not yet 0.83) do whenever they are configured.

    With a host that is down that would be a wait and a warning before anything else is tried.
    """

    def _resolve_host_metadata(self) -> None:
        """The SDK's hook."""


def check_host(host: str | None, *, allow_http: bool = False) -> None:
    """Raise ConfigurationError for a host that the SDK would take as it is and fail with on every call.

    Also for one to which a token would travel in clear, unless it is on this machine or ``allow_http`` is true.
    """
    if not host:
        raise ConfigurationError(_NO_HOST)
    url = host if "://" in host else f"https://{host}"
    if not _is_scheme_and_host(url):
        shown = "(its value is not shown)" if set("@?#") & set(host) else host
        message = f"DATABRICKS_HOST must be scheme and host only, such as https://adb-1.2.azuredatabricks.net: {shown}"
        raise ConfigurationError(message)
    if urlsplit(url).scheme == "http" and not allow_http and not is_here(urlsplit(url).hostname or ""):
        raise ConfigurationError(_IN_CLEAR.format(host=host))


def _is_scheme_and_host(url: str) -> bool:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        return False
    return bool(usable) and not (parts.query or parts.fragment or parts.path.strip("/") or "@" in parts.netloc)


def workspace_client(environment: Mapping[str, str], settings: Settings) -> WorkspaceClient:
    """A client that signs in as the variables say; makes no call for a personal access token.

    Raises as ``signed_in``.
    """
    return WorkspaceClient(config=signed_in(environment, settings))


def signed_in(environment: Mapping[str, str], settings: Settings) -> Config:
    """The SDK's configuration, with host and credentials from these variables.

    Raises ConfigurationError when host or credentials are missing or contradict each other, WorkspaceUnavailable when
    the workspace does not say how to sign in.
    """
    host = environment.get("DATABRICKS_HOST")
    if host or not _finds_host(environment):
        check_host(host, allow_http=settings.allow_http)
    way = sign_in(environment)
    given = arguments(environment, way)
    strategy = ManagedIdentity() if way == MANAGED_IDENTITY else OurTokens(allow_http=settings.allow_http)
    timeout = settings.http_timeout_seconds
    configure = _WithoutMetadata if way in _KNOWN_WAYS else Config
    try:
        config = configure(
            credentials_strategy=strategy, http_timeout_seconds=timeout, retry_timeout_seconds=1, **given
        )
    except ProcessManagerError:
        raise
    except Exception as error:  # noqa: BLE001 credential providers raise what they like
        raise _failure(error, environment, way) from None
    check_host(config.host, allow_http=settings.allow_http)
    return config


def _finds_host(environment: Mapping[str, str]) -> bool:
    if any(environment.get(name) for name in _HOSTED_BY):
        return True
    # A user without an entry in passwd and without HOME has no folder for profiles, or has one that it may not enter.
    with suppress(RuntimeError, OSError):
        return Path(environment.get("DATABRICKS_CONFIG_FILE") or "~/.databrickscfg").expanduser().exists()
    return False


def _failure(error: Exception, environment: Mapping[str, str], way: str | None) -> ProcessManagerError:
    for cause in exception_chain(error):
        if isinstance(cause, (requests.ConnectionError, requests.Timeout)):
            return failure(environment.get("DATABRICKS_HOST") or "the workspace", cause)
    secrets = [value for name, value in environment.items() if "SECRET" in name or "TOKEN" in name]
    first_line = scrubbed(str(error), secrets).splitlines()[0][:_MESSAGE_LIMIT]
    if _NOTHING_FITS in first_line and way is None:
        return ConfigurationError(f"no complete way to sign in to the workspace is set; it takes {WAYS}")
    if _NOTHING_FITS in first_line:
        return ConfigurationError(
            f"signing in by {way} is not possible with the variables that are set; it takes {WAYS}"
        )
    return ConfigurationError(f"the workspace credentials cannot be used: {first_line}")
