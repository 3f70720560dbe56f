"""Entra ID tokens, through azure-identity.

Put here: getting a token for a service of Azure, and what its failures mean. Keep out: what a token is used for.
azure-identity is an extra (``azure``) and is imported when first used: the cluster's image does not have it.

One credential object lives as long as the process; it keeps tokens until they are about to expire, and reads the
identity's own secret (``AZURE_*`` variables, managed identity, Azure CLI ...) once, when it is made.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from pm_dagster.core.errors import ConfigurationError, Unavailable

if TYPE_CHECKING:
    from azure.core.credentials import TokenCredential

#: https://learn.microsoft.com/en-us/azure/postgresql/security/security-entra-configure#retrieve-the-microsoft-entra-access-token
POSTGRES_SCOPE = "https://ossrdbms-aad.database.windows.net/.default"


def missing_library(use: str) -> ConfigurationError:
    """The error for ``use`` of an Azure library that is not installed."""
    return ConfigurationError(
        f"{use} needs azure-identity: install process-manager with its extra, process-manager[azure]"
    )


def token(scope: str, use: str) -> str:
    """A bearer token for ``scope`` from azure-identity's default chain; ``use`` says in errors what it is for.

    Raises ConfigurationError when there is no identity or it is refused, Unavailable when Entra ID cannot be reached.
    """
    credential = default_credential(use)
    from azure.core.exceptions import ClientAuthenticationError, ServiceRequestError, ServiceResponseError  # noqa: PLC0415

    try:
        return credential.get_token(scope).token
    except (ServiceRequestError, ServiceResponseError) as error:
        raise Unavailable(f"{use}: Entra ID does not answer ({type(error).__name__})") from None
    except ClientAuthenticationError as error:
        raise ConfigurationError(f"{use}: Entra ID gives no token: {_first_line(error)}") from None


@cache
def _default_credential() -> TokenCredential:
    from azure.identity import DefaultAzureCredential  # noqa: PLC0415

    return DefaultAzureCredential()


def default_credential(use: str) -> TokenCredential:
    """azure-identity's default chain, one for the process. Raises ConfigurationError when it is not installed."""
    try:
        return _default_credential()
    except ImportError:
        raise missing_library(use) from None


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:500]
