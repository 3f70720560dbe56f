"""azure-identity's credentials, with our errors.

Importing this module needs azure-identity; ``pm_dagster.config.entra`` imports it when it is first used.
Facts are from azure-identity 1.27 and azure-core 1.41.
"""

from __future__ import annotations

import logging
import threading
from typing import Any, Protocol
from urllib.parse import urlsplit

from azure.core.credentials import AccessToken
from azure.core.exceptions import AzureError
from azure.core.pipeline.transport import HttpRequest, RequestsTransport
from azure.core.rest import HttpRequest as RestRequest
from azure.identity import DefaultAzureCredential, ManagedIdentityCredential

from pm_dagster.errors import ConfigurationError, Unavailable
from pm_dagster.net import tls

_CONNECT_SECONDS, _READ_SECONDS = 10, 30
_MESSAGE_LIMIT = 500
_TOO_MANY, _SERVER_ERROR = 429, 500
#: Every machine outside Azure fails to connect to it, so a failure says nothing about the network. Two of its answers
#: ask to come again: https://learn.microsoft.com/en-us/entra/identity/managed-identities-azure-resources/how-to-use-vm-token#retry-guidance
_METADATA_SERVICE = "169.254.169.254"
_METADATA_COME_AGAIN = (404, 410)
_NO_IDENTITY = (
    "there is no Azure identity here: set AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET, assign a managed"
    " identity to this machine, or run `az login`"
)


class _Credential(Protocol):
    def get_token(self, *scopes: str, **options: Any) -> AccessToken: ...  # noqa: ANN401 azure-core's own signature


class _NotingTransport(RequestsTransport):  # type: ignore[misc]  # its package exports it by a module __getattr__
    """azure-core's transport, which remembers when the other side failed to answer, until it answers again.

    azure-identity turns every failure into the same error, a broken connection too, and keeps no cause. MSAL (1.39)
    repeats a failure for a minute without asking again.
    """

    def __init__(self) -> None:
        super().__init__(connection_timeout=_CONNECT_SECONDS, read_timeout=_READ_SECONDS)
        #: What went wrong with the last request, None when it was answered.
        self.trouble: str | None = None
        #: Which host showed a certificate that is not to be trusted, and why not.
        self.untrusted: tuple[str | None, str] | None = None

    def send(self, request: HttpRequest | RestRequest, **options: Any) -> Any:  # noqa: ANN401 azure-core's own signature
        """Send one request."""
        metadata_service = urlsplit(request.url).hostname == _METADATA_SERVICE
        try:
            response = super().send(request, **options)
        except AzureError as error:
            if not metadata_service:
                why = tls.untrusted_reason(error)
                self.trouble = type(error).__name__
                self.untrusted = (urlsplit(request.url).hostname, why) if why else None
            raise
        self.untrusted = None
        status = response.status_code
        come_again = _METADATA_COME_AGAIN if metadata_service else ()
        failed = status == _TOO_MANY or status >= _SERVER_ERROR or status in come_again
        self.trouble = f"HTTP {status}" if failed else None
        return response


class Identity:
    """An identity that Entra ID gives tokens to; what azure-core takes as a credential. Thread-safe."""

    def __init__(self, credential: _Credential, transport: _NotingTransport) -> None:
        self._credential = credential
        self._transport = transport
        # Sixteen calls that begin at once need one token.
        self._one_at_a_time = threading.Lock()

    def get_token(self, *scopes: str, **options: Any) -> AccessToken:  # noqa: ANN401 azure-core's own signature
        """A token for the scopes.

        Raises ConfigurationError when there is no identity or it is refused, Unavailable when Entra ID, or what stands
        in for it on this machine, does not answer.
        """
        try:
            with self._one_at_a_time:
                return self._credential.get_token(*scopes, **options)
        except (AzureError, ValueError) as error:
            if self._transport.untrusted:
                raise tls.untrusted_error(*self._transport.untrusted) from None
            if trouble := self._transport.trouble:
                raise Unavailable(f"Entra ID does not answer ({trouble})") from None
            raise ConfigurationError(f"Entra ID gives us no token: {self._reason(error)}") from None

    def _reason(self, error: Exception) -> str:
        """One line. The default chain lists its attempts, each behind a tab; the last one is where it ended."""
        lines = str(error).splitlines() or [type(error).__name__]
        attempts = [line.strip() for line in lines if line.startswith("\t")]
        if len(attempts) == len(getattr(self._credential, "credentials", ())) > 0:
            return _NO_IDENTITY
        return (attempts or lines)[-1 if attempts else 0].strip()[:_MESSAGE_LIMIT]


def default() -> Identity:
    """azure-identity's default chain."""
    _quieten()
    transport = _NotingTransport()
    return Identity(DefaultAzureCredential(transport=transport), transport)


def managed(client_id: str | None) -> Identity:
    """The managed identity of this machine."""
    _quieten()
    transport = _NotingTransport()
    return Identity(ManagedIdentityCredential(client_id=client_id, transport=transport), transport)


def _quieten() -> None:
    """azure-identity warns in many lines of what we say in one; who sets a level of their own keeps it."""
    logger = logging.getLogger("azure")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.ERROR)
