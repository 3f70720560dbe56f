"""One HTTP attempt for the SDK's service classes, and nothing hidden behind it.

The SDK's own client (from 0.30 on, ``_base_client.py``) resends POSTs by itself after a reset, a time-out, 429 and 503,
sleeps through any Retry-After before it says so, and can put the bearer token into an exception's text. ``JobsAPI``
only needs an object with ``do`` and, since 0.83, ``_cfg``; this one makes the attempt with requests and the SDK's
credentials, and says what happened.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import requests
from databricks.sdk.core import Config
from requests.exceptions import InvalidHeader, InvalidURL
from urllib3.exceptions import LocationParseError, NewConnectionError

from pm_dagster.config.masking import scrubbed
from pm_dagster.dispatch.answers import Asked, classify, says_job_is_absent
from pm_dagster.errors import (
    AuthenticationFailed,
    ConfigurationError,
    ForeignAnswer,
    Kind,
    NotAdmitted,
    ProcessManagerError,
    Refused,
    Throttled,
    Unavailable,
    WorkspaceUnavailable,
)
from pm_dagster.logs import fields
from pm_dagster.net import tls
from pm_dagster.net.exception_chain import exception_chain
from pm_dagster.net.tls import is_local_http
from pm_dagster.net.token_endpoint import keep_credentials
from pm_dagster.net.watchdog import Watchdog

_log = logging.getLogger(__name__)
_CONNECT_TIMEOUT_SECONDS = 10.0
_MESSAGE_LIMIT = 500
#: As much of an error's text is looked at: far more than is kept, and little enough for a search that is not linear.
_READ_LIMIT = 8192
_OK, _REDIRECT = 200, 300
#: Unpacked. The longest answers that the Jobs API documents, a page of 100 tasks or of 25 runs, are far below a tenth.
_MOST_BYTES = 16 * 2**20
_CHUNK_BYTES = 65_536
_CREDENTIALS_HINT = " (a token of another workspace or tenant, an expired one, or a user who is not in the workspace?)"
_FOREIGN_HINT = (
    " (is DATABRICKS_HOST the workspace's own address, not an account's, and is a proxy or gateway on the way?)"
)


class OneAttempt:
    """What ``databricks.sdk.service.jobs.JobsAPI`` takes as its client: ``do`` makes exactly one HTTP attempt.

    Nothing else of the SDK's client is passed on: what this one lacks must fail, not be sent by the other.

    ``config`` is the SDK's, with its credentials; ``timeout`` is seconds per attempt. Thread-safe: one HTTP session
    per thread.
    """

    def __init__(self, config: Config, timeout: float) -> None:
        self._config = self._cfg = config
        self._timeout = timeout
        self._local = threading.local()
        self._watchdog = Watchdog(ValueError)

    def do(
        self,
        method: str,
        path: str | None = None,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        **_unused: object,
    ) -> dict[str, Any]:
        """Make the attempt. Raises Unavailable, AuthenticationFailed, Refused, or ConfigurationError if none can be."""
        given = headers or _routing(self._config)
        sent = {**given, **self._credentials(), "User-Agent": self._config.user_agent}
        session, url, values = self._session(), f"{self._config.host}{path}", _query(query)
        self._local.begun = self.begun + 1
        began, status = time.monotonic(), 0
        try:
            response = session.request(
                method,
                url,
                params=values,
                json=body,
                headers=sent,
                timeout=(min(_CONNECT_TIMEOUT_SECONDS, self._timeout), self._timeout),
                allow_redirects=False,
                stream=True,
            )
            status = response.status_code
            with self._watchdog.limit(response.raw.fileno, self._timeout):
                content = _read_body(response)
        except (InvalidHeader, InvalidURL, LocationParseError, UnicodeError) as error:
            text = f"no request can be made ({type(error).__name__}): is a line break or the like in host or token?"
            raise ConfigurationError(text) from None
        except requests.RequestException as error:
            raise self._no_answer(error) from None
        except OSError as error:
            # A list of authorities that is not there, for one.
            raise ConfigurationError(self.scrub(f"no request can be made: {error}")[:_MESSAGE_LIMIT]) from None
        finally:
            # Neither headers nor bodies: one has the token, the other what rows hold.
            seconds = round(time.monotonic() - began, 3)
            _log.debug("request", extra=fields(call=f"{method} {path}", status=status or None, seconds=seconds))
        return self._read(response, content, _asked(path, query, body))

    @property
    def begun(self) -> int:
        """How many requests this thread has begun to send."""
        return int(getattr(self._local, "begun", 0))

    def scrub(self, text: str) -> str:
        """``text`` without this connection's secrets."""
        config = self._config
        known = [getattr(config, name, None) for name in ("token", "client_secret", "azure_client_secret", "password")]
        return scrubbed(text, [*known, *getattr(self._local, "sent", ())])

    def _session(self) -> requests.Session:
        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None:
            session = requests.Session()
            # The SDK's credentials are explicit; a .netrc must not override them.
            session.auth = keep_credentials
            session.trust_env = not is_local_http(self._config.host)
            self._local.session = session
        return session

    def _credentials(self) -> dict[str, str]:
        """The SDK's headers. A token endpoint that fails shows as ValueError, whatever its HTTP status (SDK 0.60)."""
        try:
            headers = dict(self._config.authenticate())
        except (requests.RequestException, TimeoutError, Unavailable) as error:
            what = str(error) if isinstance(error, Unavailable) else type(error).__name__
            message = self.scrub(f"no token for {self._config.host}: {what}")
            raise WorkspaceUnavailable(message, maybe_applied=False) from None
        except Exception as error:  # noqa: BLE001 credential providers raise what they like
            message = self.scrub(f"no credentials for {self._config.host}: {error}")[:_MESSAGE_LIMIT]
            raise AuthenticationFailed(message) from None
        # Tokens that were issued to us are in no configuration.
        self._local.sent = [value.rpartition(" ")[2] for value in headers.values()]
        return headers

    def _no_answer(self, error: requests.RequestException) -> ProcessManagerError:
        host = self._config.host
        if why := tls.untrusted_reason(error):
            return tls.untrusted_error(host, why)
        if why := tls.handshake_failure(error):
            return WorkspaceUnavailable(f"cannot connect to {host}: no TLS ({why})", maybe_applied=False)
        if _never_connected(error):
            return WorkspaceUnavailable(f"cannot connect to {host}", maybe_applied=False)
        if isinstance(error, requests.Timeout):
            return WorkspaceUnavailable(f"{host} did not answer within {self._timeout:g} s")
        return WorkspaceUnavailable(f"the connection to {host} broke ({type(error).__name__})")

    def _read(self, response: requests.Response, content: bytes, asked: Asked) -> dict[str, Any]:
        status = response.status_code
        payload = {} if response.ok and not content else _json(content)
        if _OK <= status < _REDIRECT:
            if payload is None:
                raise WorkspaceUnavailable("the workspace answered 200 with something that is not JSON", status=status)
            return payload
        # Read as it came: a password may be a word such as "workspace", and masked it says something else.
        code, text = _error_text(response, content, payload)
        said = f"{_where_to(response)} {text[:_MESSAGE_LIMIT]}".strip()
        kind = classify(asked, status, code, said, is_json=payload is not None and bool(content))
        raise self._error(kind, response, code, text)

    def _error(self, kind: Kind, response: requests.Response, code: str | None, text: str) -> ProcessManagerError:
        """The error to raise; nothing of it holds a secret."""
        status, host = response.status_code, self._config.host
        # Masked before it is cut: half a secret is not recognised any more.
        name = None if code is None else self.scrub(code)[:_MESSAGE_LIMIT]
        parts = (f"HTTP {status}", _where_to(response), name, self.scrub(text)[:_MESSAGE_LIMIT])
        message = " ".join(part for part in parts if part)
        if kind is Kind.THROTTLED:
            pause = _retry_after(response.headers.get("Retry-After"))
            _log.info("throttled", extra=fields(call=urlsplit(response.url).path, pause=pause))
            return Throttled(message, retry_after=pause)
        if kind is Kind.CREDENTIALS:
            return AuthenticationFailed(
                f"{host} does not accept our credentials: {message}{_CREDENTIALS_HINT}", status=status
            )
        if kind is Kind.NETWORK:
            return NotAdmitted(f"{host} does not accept calls from this network: {message}", status=status)
        if kind is Kind.FOREIGN:
            return ForeignAnswer(f"{message}: no answer of the Jobs API at {host}{_FOREIGN_HINT}", status=status)
        if kind in (Kind.MOMENT, Kind.QUOTA):
            return WorkspaceUnavailable(message, maybe_applied=kind is Kind.MOMENT, status=status)
        return Refused(
            message,
            status=status,
            error_code=name,
            gone=kind is Kind.GONE,
            kind=kind,
            job_absent=says_job_is_absent(text[:_MESSAGE_LIMIT]),
        )


def _read_body(response: requests.Response) -> bytes:
    """The body of an answer that was asked for with ``stream=True``.

    Raises WorkspaceUnavailable for one that is too long, requests' errors for one that breaks off. The caller's
    watchdog limits the whole: requests itself only limits the pauses in between.
    """
    parts: list[bytes] = []
    size = 0
    with response:
        for part in response.iter_content(_CHUNK_BYTES):
            parts.append(part)
            size += len(part)
            if size > _MOST_BYTES:
                message = f"the workspace answered HTTP {response.status_code} with more than {_MOST_BYTES} bytes"
                raise WorkspaceUnavailable(message, status=response.status_code)
    return b"".join(parts)


def _error_text(
    response: requests.Response, content: bytes, payload: Mapping[str, Any] | None
) -> tuple[str | None, str]:
    """The textual error code and the text on one line, both as they came: they may hold secrets."""
    code = payload.get("error_code") if payload else None
    # Whatever charset the answer claims: some are none, and guessing one from a long text takes seconds.
    text = _message(payload) if payload else content.decode("utf-8", "replace")
    name = code[:_READ_LIMIT] if isinstance(code, str) and not code.isdigit() else None
    return name, " ".join(str(text or response.reason or "")[:_READ_LIMIT].split())


def _message(payload: Mapping[str, Any]) -> object:
    """The text, wherever it stands: the Jobs API says ``message``, its gateway ``error``, SCIM ``detail``."""
    return next((payload[name] for name in ("message", "error", "detail") if payload.get(name)), None)


def _where_to(response: requests.Response) -> str:
    """Where a redirect leads, empty for another answer."""
    return f"to {_where(response)}" if response.is_redirect else ""


def _where(response: requests.Response) -> str:
    """Where a redirect leads: the host, and what kind of page. The rest of the address may repeat what was sent."""
    target = urlsplit(response.headers.get("Location", ""))
    host = f"{target.scheme}://{target.hostname}" if target.hostname else "a page of its own"
    why = "private link" if "private-link" in target.query else "login" if "login" in target.path.lower() else ""
    return f"{host} ({why})" if why else host


def _asked(path: str | None, query: Mapping[str, Any] | None, body: Mapping[str, Any] | None) -> Asked:
    """What the call is about, as its path, query and body say."""
    given = {**(query or {}), **(body or {})}
    parameters = given.get("job_parameters")
    return Asked(
        path=path or "",
        job_id=_number(given.get("job_id")),
        run_id=_number(given.get("run_id")),
        parameters=parameters if isinstance(parameters, dict) else {},
    )


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _routing(config: Config) -> dict[str, str]:
    """What leads a call that no service class makes to its workspace, where a host serves several.

    The service classes do it by themselves: since databricks-sdk 0.83 by the first name, later ones by the second.
    """
    workspace = getattr(config, "workspace_id", None)
    return dict.fromkeys(("X-Databricks-Org-Id", "X-Databricks-Workspace-Id"), str(workspace)) if workspace else {}


def _never_connected(error: BaseException) -> bool:
    """True when the request certainly was not sent: no TCP connection came about."""
    return any(isinstance(cause, (NewConnectionError, requests.ConnectTimeout)) for cause in exception_chain(error))


def _query(query: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Booleans as the API reads them."""
    if query is None:
        return None
    return {key: str(value).lower() if isinstance(value, bool) else value for key, value in query.items()}


def _json(content: bytes) -> dict[str, Any] | None:
    try:
        payload = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return payload if isinstance(payload, dict) else None


def _retry_after(value: str | None) -> float | None:
    """Seconds from a Retry-After header, which holds seconds or a date (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        pass
    else:
        # Python also reads "inf" and "nan", which would pause an endpoint for ever.
        return max(0.0, seconds) if math.isfinite(seconds) else None
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (moment - datetime.now(UTC)).total_seconds()) if moment.tzinfo else None
