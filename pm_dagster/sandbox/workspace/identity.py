"""Where a client learns who it is and how to log in: host metadata, scim Me, OAuth discovery and tokens, telemetry.

Put here: the calls around a client's start. Keep out: which tokens are good (``auth.py``).
"""

from __future__ import annotations

import base64
import binascii
from urllib.parse import parse_qs

from starlette.requests import Request

from pm_dagster.sandbox.workspace.auth import USER_ID, USER_NAME, Tokens
from pm_dagster.sandbox.workspace.call import Reply, body_of, unknown_call
from pm_dagster.sandbox.workspace.errors import LoginError
from pm_dagster.sandbox.workspace.views import WORKSPACE_ID


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
