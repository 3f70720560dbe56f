"""Signing in to the workspace by environment variables, the same for Dagster, ``pm`` and the cluster.

Which way the variables describe, what contradicts what, what makes a host usable, and what a failed sign-in means. The
ways themselves are the SDK's and those of ``credentials_strategies``. References to secrets are replaced in the
variables that come in here (``config.credentials``).

The SDK's Config reads the process environment for every attribute that it is not given. There, a variable may hold a
reference to a secret, or belong to another workspace, so all that belongs to the chosen way is given, and what belongs
to other ways, or is set in the process and not in these variables, is given as empty.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from databricks.sdk.core import Config

from pm_dagster.config.masking import scrubbed
from pm_dagster.config.settings import Settings
from pm_dagster.databricks.credentials_strategies import (
    AZURE_SECRET,
    MANAGED_IDENTITY,
    OAUTH,
    ClientSecret,
    ManagedIdentity,
)
from pm_dagster.errors import ConfigurationError, ProcessManagerError
from pm_dagster.net.exception_chain import exception_chain
from pm_dagster.net.tls import is_loopback
from pm_dagster.net.token_endpoint import sign_in_failure

AUTH_TYPE = "DATABRICKS_AUTH_TYPE"
_PROFILE = "DATABRICKS_CONFIG_PROFILE"
_USE_MSI = "ARM_USE_MSI"
#: The ways that need certain variables, each with the SDK's word for the family of attributes that it uses.
_FAMILY_OF = {
    "pat": "pat",
    "basic": "basic",
    OAUTH: "oauth",
    AZURE_SECRET: "azure",
    MANAGED_IDENTITY: "azure",
    "azure-cli": "azure",
}
#: For people: what each way takes.
WAYS = (
    "DATABRICKS_TOKEN (pat); or DATABRICKS_CLIENT_ID, DATABRICKS_CLIENT_SECRET (oauth-m2m); or ARM_CLIENT_ID,"
    " ARM_CLIENT_SECRET, ARM_TENANT_ID (azure-client-secret); or ARM_USE_MSI=true (azure-msi); or `az login`"
)
_MESSAGE_LIMIT = 500
#: The ways for which nothing has to be found out about the host: no token of theirs comes through the SDK.
_KNOWN_WAYS = ("pat", "basic", OAUTH, AZURE_SECRET, MANAGED_IDENTITY)
#: Without DATABRICKS_HOST the SDK can find the workspace by these.
_HOSTED_BY = ("DATABRICKS_CONFIG_PROFILE", "DATABRICKS_AZURE_RESOURCE_ID", "DATABRICKS_RUNTIME_VERSION")
#: The SDK's words when no provider, or not the chosen one, has what it needs.
_NOTHING_FITS = "cannot configure default credentials"
_NO_HOST = "no workspace is configured: set DATABRICKS_HOST (and DATABRICKS_TOKEN or other DATABRICKS_*/ARM_*)"
_IN_CLEAR = (
    "DATABRICKS_HOST is {host}: without TLS anybody on the way can read our token; use https, or set PM_ALLOW_HTTP=true"
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
    if urlsplit(url).scheme == "http" and not allow_http and not is_loopback(urlsplit(url).hostname or ""):
        raise ConfigurationError(_IN_CLEAR.format(host=host))


def _is_scheme_and_host(url: str) -> bool:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        return False
    return bool(usable) and not (parts.query or parts.fragment or parts.path.strip("/") or "@" in parts.netloc)


def signed_in(environment: Mapping[str, str], settings: Settings) -> Config:
    """The SDK's configuration, which signs in as the variables say; a personal access token makes no call.

    Args:
        environment: ``DATABRICKS_*`` and ``ARM_*`` variables, without references to secrets.
        settings: The time-out of a call in seconds, and whether a token may travel without TLS.

    Raises:
        ConfigurationError: Host or credentials are missing or contradict each other.
        WorkspaceUnavailable: The workspace does not say how to sign in.
    """
    host = environment.get("DATABRICKS_HOST")
    if host or not _finds_host(environment):
        check_host(host, allow_http=settings.allow_http)
    way = way_to_sign_in(environment)
    given = arguments(environment, way)
    strategy = ManagedIdentity() if way == MANAGED_IDENTITY else ClientSecret(allow_http=settings.allow_http)
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
            return sign_in_failure(environment.get("DATABRICKS_HOST") or "the workspace", cause)
    secrets = [value for name, value in environment.items() if "SECRET" in name or "TOKEN" in name]
    first_line = scrubbed(str(error), secrets).splitlines()[0][:_MESSAGE_LIMIT]
    if _NOTHING_FITS in first_line and way is None:
        return ConfigurationError(f"no complete way to sign in to the workspace is set; it takes {WAYS}")
    if _NOTHING_FITS in first_line:
        return ConfigurationError(
            f"signing in by {way} is not possible with the variables that are set; it takes DATABRICKS_HOST, and {WAYS}"
        )
    return ConfigurationError(f"the workspace credentials cannot be used: {first_line}")


def way_to_sign_in(environment: Mapping[str, str]) -> str | None:
    """The one way to sign in that the variables describe, by the SDK's name for it; None leaves it to the SDK.

    The SDK then tries what is on this machine: Azure CLI, Databricks CLI, a profile of ~/.databrickscfg, the identity
    of a cluster. Raises ConfigurationError when the variables belong to several ways and DATABRICKS_AUTH_TYPE does not
    choose, or when half of a pair is missing.
    """
    chosen = environment.get(AUTH_TYPE)
    if chosen:
        return chosen
    families = _families(environment)
    if len(families) > 1:
        names = ", ".join(name for names in families.values() for name in names)
        ways = [way for way, family in _FAMILY_OF.items() if family in families]
        raise _several(names, ways or sorted(families))
    (family,) = families or (None,)
    if family == "azure":
        return _azure(environment)
    if family == "oauth":
        return _oauth(environment)
    return family if family in ("pat", "basic") else None


def is_configured(environment: Mapping[str, str]) -> bool:
    """True when something other than a personal access token is set up in the variables."""
    others = set(_families(environment)) - {"pat"}
    chosen = environment.get(AUTH_TYPE) or ""
    return chosen not in ("", "pat") or bool(environment.get(_PROFILE)) or (not chosen and bool(others))


def arguments(environment: Mapping[str, str], way: str | None) -> dict[str, Any]:
    """The SDK's attributes for that way, from these variables and no others.

    The process environment is looked at for the names alone that the SDK would read from it.
    """
    family = _FAMILY_OF.get(way or "")
    given: dict[str, Any] = {}
    for attribute in Config.attributes():
        if not attribute.env:
            continue
        foreign = bool(family and attribute.auth and attribute.auth != family)
        value = "" if foreign else environment.get(attribute.env, "")
        if value or foreign or os.environ.get(attribute.env):
            # The SDK would make a number of an empty text, and fail.
            given[attribute.name] = value or (0 if attribute.transform in (int, float, bool) else "")
    return given | ({"auth_type": way} if way else {})


def _families(environment: Mapping[str, str]) -> dict[str, list[str]]:
    """The set variables by the family that the SDK sorts them into."""
    found: dict[str, list[str]] = {}
    for attribute in Config.attributes():
        if attribute.auth and environment.get(attribute.env or ""):
            found.setdefault(attribute.auth, []).append(attribute.env)
    return found


def _is_true(environment: Mapping[str, str]) -> bool:
    return environment.get(_USE_MSI, "").strip().lower() in ("1", "true", "yes", "on")


def _azure(environment: Mapping[str, str]) -> str | None:
    secret = bool(environment.get("ARM_CLIENT_SECRET"))
    if secret and _is_true(environment):
        raise _several("ARM_CLIENT_SECRET, ARM_USE_MSI", [AZURE_SECRET, MANAGED_IDENTITY])
    if secret and not environment.get("ARM_CLIENT_ID"):
        raise ConfigurationError("ARM_CLIENT_SECRET is set without ARM_CLIENT_ID: set both to sign in to the workspace")
    if secret:
        return AZURE_SECRET
    if _is_true(environment):
        return MANAGED_IDENTITY
    # A tenant or client id alone helps the identity of a GitHub workflow, or Azure CLI.
    return None if environment.get("ACTIONS_ID_TOKEN_REQUEST_TOKEN") else "azure-cli"


def _oauth(environment: Mapping[str, str]) -> str | None:
    identified = bool(environment.get("DATABRICKS_CLIENT_ID"))
    secret = bool(environment.get("DATABRICKS_CLIENT_SECRET"))
    if secret and not identified:
        raise ConfigurationError("DATABRICKS_CLIENT_SECRET is set without DATABRICKS_CLIENT_ID: set both to sign in")
    # A client id alone belongs to the SDK's ways with a token of another identity provider.
    return OAUTH if secret else None


def _several(names: str, ways: list[str]) -> ConfigurationError:
    return ConfigurationError(
        f"several ways to sign in to the workspace are set ({names}); set {AUTH_TYPE} to one of {', '.join(ways)}"
    )
