"""Tokens, and where a client learns who it is: host metadata, scim Me, OAuth discovery and tokens, telemetry."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import threading
import time
from collections.abc import Callable
from urllib.parse import parse_qs

from starlette.requests import Request

from pm_dagster.sandbox.workspace.call import Reply, body_of, unknown_call
from pm_dagster.sandbox.workspace.errors import LoginError
from pm_dagster.sandbox.workspace.model import USER_ID, USER_NAME, WORKSPACE_ID


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


class Tokens:
    """The bearer tokens that the workspace accepts."""

    def __init__(self, token: str, client_id: str, client_secret: str, clock: Callable[[], float] = time.time) -> None:
        self.lifetime = 3600
        self._clock = clock
        self._lock = threading.Lock()
        self._personal = _digest(token)
        self._client = _digest(f"{client_id}:{client_secret}")
        self._issued: dict[bytes, float] = {}

    def accepts(self, token: str) -> bool:
        """True for the personal token and for an issued one that has not expired."""
        digest = _digest(token)
        if hmac.compare_digest(digest, self._personal):
            return True
        with self._lock:
            return self._issued.get(digest, 0.0) > self._clock()

    def issue(self, client_id: str, client_secret: str) -> str | None:
        """A fresh token for the right client credentials, else None."""
        if not hmac.compare_digest(_digest(f"{client_id}:{client_secret}"), self._client):
            return None
        token = "sandbox-" + secrets.token_urlsafe(24)
        with self._lock:
            self._issued[_digest(token)] = self._clock() + self.lifetime
        return token

    def revoke_issued(self) -> None:
        """Let every issued token expire now."""
        with self._lock:
            self._issued.clear()


def base_url(request: Request) -> str:
    """Where the caller reached the workspace."""
    return str(request.base_url).rstrip("/")


def me(_: Request, __: bytes) -> Reply:
    """The user that every token stands for."""
    return Reply({"id": USER_ID, "userName": USER_NAME, "displayName": "Sandbox", "active": True})


def host_metadata(request: Request, _: bytes) -> Reply:
    """What the Databricks CLI (1.13.0) asks of a host before anything else."""
    return Reply({"oidc_endpoint": f"{base_url(request)}/oidc", "workspace_id": WORKSPACE_ID, "cloud": "Azure"})


def telemetry(request: Request, raw: bytes) -> Reply:
    """Take the CLI's usage records and keep none."""
    if request.method != "POST":
        raise unknown_call(request)
    records = body_of(raw).get("protoLogs")
    return Reply({"errors": [], "numProtoSuccess": len(records) if isinstance(records, list) else 0})


def discovery(request: Request, _: bytes) -> Reply:
    """Where the token endpoint is."""
    base = base_url(request)
    return Reply(
        {
            "issuer": f"{base}/oidc",
            "authorization_endpoint": f"{base}/oidc/v1/authorize",
            "token_endpoint": f"{base}/oidc/v1/token",
            "grant_types_supported": ["client_credentials"],
        }
    )


class TokenEndpoint:
    """The client credentials flow."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    def issue(self, request: Request, raw: bytes) -> Reply:
        """A short-lived token for the right client id and secret, which come in the form or as Basic."""
        form = {name: values[0] for name, values in parse_qs(raw.decode("utf-8", "replace")).items()}
        if request.method != "POST" or form.get("grant_type") != "client_credentials":
            raise LoginError(400, "unsupported_grant_type", "POST with grant_type=client_credentials")
        basic = _basic(request.headers.get("authorization", ""))
        token = self._tokens.issue(*(basic or (form.get("client_id", ""), form.get("client_secret", ""))))
        if token is None:
            raise LoginError(401, "invalid_client", "Client authentication failed")
        lifetime = self._tokens.lifetime
        return Reply({"access_token": token, "token_type": "Bearer", "expires_in": lifetime, "scope": "all-apis"})


def _basic(header: str) -> tuple[str, str] | None:
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        name, _, secret = base64.b64decode(encoded).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return "", ""
    return name, secret
