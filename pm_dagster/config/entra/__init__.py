"""Entra ID tokens, through azure-identity.

azure-identity is an extra (``azure``) and imported when first used: the cluster's image does not have it.

Identities live as long as the process: they keep tokens until these are about to expire. azure-identity reads the
secret of the default identity from the process (``AZURE_*`` variables, managed identity, Azure CLI ...), so there is
one of it for all workspaces and databases of a process.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from pm_dagster.errors import ConfigurationError
from pm_dagster.net.retry import retry

if TYPE_CHECKING:
    from pm_dagster.config.entra.identity import Identity


def missing_library(name: str) -> ConfigurationError:
    """The error for an Azure library that is not installed."""
    return ConfigurationError(
        f"{name} is not installed: install process-manager with its extra, process-manager[azure]"
    )


def token(scope: str) -> str:
    """A bearer token of the default identity for ``scope``.

    Raises ConfigurationError when there is no identity or it is refused, Unavailable when Entra ID does not answer.
    """
    identity = default_identity()
    return retry(lambda: identity.get_token(scope).token, what="asking Entra ID for a token")


@cache
def default_identity() -> Identity:
    """Who azure-identity's DefaultAzureCredential finds that we are. Raises ConfigurationError without the library."""
    try:
        from pm_dagster.config.entra import identity  # noqa: PLC0415
    except ImportError:
        raise missing_library("azure-identity") from None
    return identity.default()


@cache
def managed_identity(client_id: str | None) -> Identity:
    """The managed identity of this machine: the one with ``client_id``, or the machine's own.

    Raises ConfigurationError without the library.
    """
    try:
        from pm_dagster.config.entra import identity  # noqa: PLC0415
    except ImportError:
        raise missing_library("azure-identity") from None
    return identity.managed(client_id)
