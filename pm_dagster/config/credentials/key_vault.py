"""Azure Key Vault, read as the identity that azure-identity finds.

What its answers mean: https://learn.microsoft.com/en-us/azure/key-vault/general/rest-error-codes.
Importing this module needs azure-keyvault-secrets, an extra (``azure``).
"""

from __future__ import annotations

import json
import socket
from functools import cache
from typing import Any

from azure.core.exceptions import AzureError, HttpResponseError
from azure.keyvault.secrets import SecretClient

from pm_dagster.config import entra
from pm_dagster.config.credentials.references import NoSuchSecret, VaultSecret
from pm_dagster.errors import ConfigurationError, ProcessManagerError, Throttled, Unavailable
from pm_dagster.net import tls
from pm_dagster.net.exception_chain import exception_chain

_CONNECT_SECONDS, _READ_SECONDS = 10, 30
_CLIENT_ERROR, _SERVER_ERROR = 400, 500
_UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND, _TOO_MANY = 401, 403, 404, 429
_MESSAGE_LIMIT = 300


@cache
def _client(host: str) -> SecretClient:
    """One for each vault and process: it keeps its connection and token, and no secret."""
    # One attempt: azure-core would sleep through any Retry-After.
    return SecretClient(
        vault_url=f"https://{host}",
        credential=entra.default_identity(),
        retry_total=0,
        connection_timeout=_CONNECT_SECONDS,
        read_timeout=_READ_SECONDS,
    )


def read(secret: VaultSecret) -> str:
    """The value of a secret now; one attempt.

    Raises NoSuchSecret, ConfigurationError when the vault does not exist or refuses us, Unavailable when it does not
    answer.
    """
    try:
        return _client(secret.vault.host).get_secret(secret.name, secret.version).value or ""
    except HttpResponseError as error:
        raise _refusal(error) from None
    except (AzureError, ValueError) as error:
        raise _no_answer(error, secret.vault.host) from None


def _refusal(error: HttpResponseError) -> ProcessManagerError:
    status = error.status_code or _SERVER_ERROR
    said = _said(error)
    if status == _NOT_FOUND:
        return NoSuchSecret("the vault has no such secret or version")
    if status == _TOO_MANY:
        return Throttled(f"the vault throttles us: {said}", retry_after=_retry_after(error))
    if not _CLIENT_ERROR <= status < _SERVER_ERROR:
        return Unavailable(f"the vault does not answer: {said}")
    if status == _FORBIDDEN:
        return ConfigurationError(f"the vault refuses us; grant our identity Key Vault Secrets User: {said}")
    if status == _UNAUTHORIZED:
        return ConfigurationError(f"the vault does not accept our identity, perhaps one of another tenant: {said}")
    return ConfigurationError(f"the vault refuses the request: {said}")


def _said(error: HttpResponseError) -> str:
    """Status and the vault's own words on one line: who lacks which right is in them, and never a secret."""
    inner = _inner_code(error)
    code = getattr(error.error, "code", None)
    message = " ".join(str(getattr(error.error, "message", "") or error.reason or "").split())[:_MESSAGE_LIMIT]
    return " ".join(part for part in (f"HTTP {error.status_code}", inner or code, message) if part)


def _inner_code(error: HttpResponseError) -> str | None:
    """Such as ForbiddenByFirewall or SecretDisabled, which azure-core leaves in the body."""
    try:
        body: Any = json.loads(error.response.text()) if error.response else {}
        return str(body["error"]["innererror"]["code"])
    except (ValueError, KeyError, TypeError):
        return None


def _retry_after(error: HttpResponseError) -> float | None:
    value = str(getattr(error.response, "headers", {}).get("Retry-After", ""))
    return float(value) if value.isdigit() else None


def _no_answer(error: Exception, host: str) -> ProcessManagerError:
    if why := tls.untrusted_reason(error):
        return tls.untrusted_error(host, why)
    if _unknown_name(error):
        return ConfigurationError(f"there is no vault {host}, or this network cannot resolve its name")
    return Unavailable(f"the vault does not answer ({type(error).__name__})")


def _unknown_name(error: BaseException) -> bool:
    """True when the name server knows no such host; a name server that does not answer is something else."""
    found = next((cause for cause in exception_chain(error) if isinstance(cause, socket.gaierror)), None)
    return found is not None and found.errno == socket.EAI_NONAME
