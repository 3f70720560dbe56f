"""Tokens for a client id and its secret, from an OAuth token endpoint (RFC 6749, 4.4).

Two requests, for the workspace's endpoint and for a token, and what their failures mean.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import requests

from pm_dagster.errors import AuthenticationFailed, ConfigurationError, ProcessManagerError, WorkspaceUnavailable
from pm_dagster.logs import fields
from pm_dagster.net import tls
from pm_dagster.net.tls import is_local_http, is_loopback

_log = logging.getLogger(__name__)
_CONNECT_SECONDS = 10.0
_OK, _REDIRECT, _TIMED_OUT, _TOO_MANY, _SERVER_ERROR = 200, 300, 408, 429, 500
#: A token is renewed when this much of it is left: a call takes a while, and clocks differ.
_MARGIN_SECONDS = 60.0


class TokenEndpoint:
    """One endpoint. Each request is one attempt, which ends when nothing comes for ``timeout`` seconds."""

    def __init__(self, url: str, timeout: float, *, allow_http: bool) -> None:
        self._url, self._timeout = url, timeout
        parts = urlsplit(url)
        if parts.scheme != "https" and not allow_http and not is_loopback(parts.hostname or ""):
            raise ConfigurationError(
                f"the token endpoint {parts.scheme}://{parts.hostname} is without TLS: anybody on the way can"
                " read our secret; use https, or set PM_ALLOW_HTTP=true"
            )

    def tokens(self, form: Mapping[str, str | None], basic: tuple[str, str] | None = None) -> Tokens:
        """The tokens that this request gets; ``basic`` are id and secret where they go into a header."""
        return Tokens(self, form, basic)

    def ask(self, form: Mapping[str, str | None], basic: tuple[str, str] | None) -> tuple[str, float]:
        """A token and the seconds that it lives.

        Raises AuthenticationFailed when the endpoint says no, WorkspaceUnavailable when it says nothing usable,
        ConfigurationError when nothing can be asked.
        """
        auth = requests.auth.HTTPBasicAuth(*basic) if basic else keep_credentials
        fields = {"grant_type": "client_credentials", **form}
        found = _json(self._accepted(request_once("POST", self._url, self._timeout, data=fields, auth=auth)))
        token, lifetime = found.get("access_token"), found.get("expires_in")
        if not isinstance(token, str) or not token:
            raise WorkspaceUnavailable(f"{self.host} answers without a token", maybe_applied=False)
        return token, _seconds(lifetime)

    @property
    def host(self) -> str:
        """The endpoint's host, for people."""
        return urlsplit(self._url).hostname or ""

    def _accepted(self, answer: requests.Response) -> requests.Response:
        status = answer.status_code
        if _OK <= status < _REDIRECT:
            return answer
        found = _json(answer)
        code = found.get("error") or found.get("errorCode") or ""
        text = found.get("error_description") or found.get("errorSummary") or answer.reason or ""
        words = " ".join(f"HTTP {status} {f'{code}: ' if code else ''}{text}".split())
        if status >= _SERVER_ERROR or status < 400 or status in (_TIMED_OUT, _TOO_MANY):  # noqa: PLR2004 redirects
            raise WorkspaceUnavailable(f"{self.host} gives no token: {words}", maybe_applied=False)
        raise AuthenticationFailed(f"{self.host} gives us no token: {words}", status=status)


class Tokens:
    """A valid token, renewed before it expires. Thread-safe; calls that begin together ask once."""

    def __init__(
        self, endpoint: TokenEndpoint, form: Mapping[str, str | None], basic: tuple[str, str] | None = None
    ) -> None:
        self._endpoint, self._form, self._basic = endpoint, form, basic
        self._one_at_a_time = threading.Lock()
        self._token, self._good_until = "", 0.0

    def get(self) -> str:
        """A token; raises as ``TokenEndpoint.ask``."""
        with self._one_at_a_time:
            if time.monotonic() >= self._good_until:
                self._token, lifetime = self._endpoint.ask(self._form, self._basic)
                self._good_until = time.monotonic() + max(lifetime - _MARGIN_SECONDS, lifetime / 2)
                _log.info("token fetched", extra=fields(host=self._endpoint.host, lifetime=lifetime))
            return self._token


def discovered(host: str, timeout: float) -> str:
    """Where the workspace gives out its tokens: https://docs.databricks.com/aws/en/dev-tools/auth/oauth-m2m.

    Raises WorkspaceUnavailable when it does not say, ConfigurationError when it has no such thing.
    """
    url = f"{host}/oidc/.well-known/oauth-authorization-server"
    name = urlsplit(host).hostname or host
    answer = request_once("GET", url, timeout, auth=keep_credentials)
    if answer.status_code >= _SERVER_ERROR:
        text = f"the workspace does not say how to sign in (HTTP {answer.status_code})"
        raise WorkspaceUnavailable(text, maybe_applied=False)
    endpoint = _json(answer).get("token_endpoint")
    if not isinstance(endpoint, str):
        text = f"{name} has no OAuth token endpoint (HTTP {answer.status_code}): is DATABRICKS_HOST a workspace?"
        raise ConfigurationError(text)
    return endpoint


def request_once(method: str, url: str, timeout: float, **more: Any) -> requests.Response:  # noqa: ANN401 as requests takes it
    """The answer to one request; redirects are not followed. Raises as ``sign_in_failure`` says."""
    times = (min(_CONNECT_SECONDS, timeout), timeout)
    try:
        with requests.Session() as session:
            session.trust_env = not is_local_http(url)
            return session.request(method, url, timeout=times, allow_redirects=False, **more)
    except requests.RequestException as error:
        raise sign_in_failure(urlsplit(url).hostname or url, error) from None
    except (OSError, UnicodeError) as error:
        raise ConfigurationError(f"no request can be made: {error}") from None


def sign_in_failure(host: str, error: Exception) -> ProcessManagerError:
    """What a request without an answer means while nothing but signing in has begun."""
    if why := tls.untrusted_reason(error):
        return tls.untrusted_error(host, why)
    why = tls.handshake_failure(error)
    what = f"no TLS with {host} ({why})" if why else f"cannot connect to {host} ({type(error).__name__})"
    return WorkspaceUnavailable(f"signing in to the workspace failed: {what}", maybe_applied=False)


def keep_credentials(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Takes the place of a .netrc, which would override what a request carries."""
    return request


def _json(answer: requests.Response) -> dict[str, Any]:
    try:
        found = answer.json()
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _seconds(lifetime: object) -> float:
    """Version 1 of Entra ID's endpoint writes numbers as text. Without a number a token serves one call."""
    try:
        return max(0.0, float(str(lifetime)))
    except ValueError:
        return 0.0
