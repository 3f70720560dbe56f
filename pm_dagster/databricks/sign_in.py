"""How we sign in to the workspace: which way the variables describe, and the SDK's configuration for it.

Put here: the choice among the ways, and what contradicts what. Keep out: the ways themselves (the SDK has them, and
``managed_identity.py`` the one that it lacks) and failures of signing in (``client.py``).

The SDK's Config reads the process environment for every attribute that it is not given. There, a variable may hold a
reference to a secret, so all that belongs to the chosen way is given, and what belongs to other ways is given as empty.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from databricks.sdk.core import Config

from pm_dagster.errors import ConfigurationError

AUTH_TYPE = "DATABRICKS_AUTH_TYPE"
MANAGED_IDENTITY = "azure-msi"
_PROFILE = "DATABRICKS_CONFIG_PROFILE"
_USE_MSI = "ARM_USE_MSI"
#: The ways that need certain variables, each with the SDK's word for the family of attributes that it uses.
_FAMILY_OF = {
    "pat": "pat",
    "basic": "basic",
    "oauth-m2m": "oauth",
    "azure-client-secret": "azure",
    MANAGED_IDENTITY: "azure",
    "azure-cli": "azure",
}
#: For people: what each way takes.
WAYS = (
    "DATABRICKS_TOKEN (pat); or DATABRICKS_CLIENT_ID, DATABRICKS_CLIENT_SECRET (oauth-m2m); or ARM_CLIENT_ID,"
    " ARM_CLIENT_SECRET, ARM_TENANT_ID (azure-client-secret); or ARM_USE_MSI=true (azure-msi); or `az login`"
)


def sign_in(environment: Mapping[str, str]) -> str | None:
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
    """The SDK's attributes for that way, from these variables and no others."""
    family = _FAMILY_OF.get(way or "")
    given: dict[str, Any] = {}
    for attribute in Config.attributes():
        if not attribute.env:
            continue
        foreign = bool(family and attribute.auth and attribute.auth != family)
        value = "" if foreign else environment.get(attribute.env, "")
        if value or foreign or os.environ.get(attribute.env):
            given[attribute.name] = value
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
        raise _several("ARM_CLIENT_SECRET, ARM_USE_MSI", ["azure-client-secret", MANAGED_IDENTITY])
    if secret and not environment.get("ARM_CLIENT_ID"):
        raise ConfigurationError("ARM_CLIENT_SECRET is set without ARM_CLIENT_ID: set both to sign in to the workspace")
    if secret:
        return "azure-client-secret"
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
    return "oauth-m2m" if secret else None


def _several(names: str, ways: list[str]) -> ConfigurationError:
    return ConfigurationError(
        f"several ways to sign in to the workspace are set ({names}); set {AUTH_TYPE} to one of {', '.join(ways)}"
    )
