"""Entra ID: its token endpoints (v1, v2), and the endpoint of managed identities on App Service.

https://learn.microsoft.com/en-us/entra/identity-platform/v2-oauth2-client-creds-grant-flow and
https://learn.microsoft.com/en-us/azure/app-service/overview-managed-identity#rest-endpoint-reference
"""

from __future__ import annotations

import base64
import itertools
import json
import time

from pm_dagster_tests.credentials.internet import Asked, Reply, json_reply

HOST = "login.microsoftonline.com"
TENANT = "11111111-2222-3333-4444-555555555555"
CLIENT_ID = "66666666-7777-8888-9999-000000000000"
VAULTS = "https://vault.azure.net"
POSTGRES = "https://ossrdbms-aad.database.windows.net"
DATABRICKS = "2ff814a6-3304-4ab8-85cb-cd0e6f879c1d"
MANAGEMENT = "https://management.core.windows.net/"


def _part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


class Entra:
    """Issues tokens and says whether one is good. ``down`` makes it answer 503, ``lifetime`` is in seconds."""

    def __init__(self, client_secret: str) -> None:
        self.client_secret = client_secret
        self.identity_header = "header-of-the-identity-endpoint"
        self.lifetime = 3600
        self.down = False
        self._good: dict[str, tuple[str, float]] = {}
        self._serial = itertools.count(1)

    def issue(self, audience: str, **claims: str) -> str:
        """A token as Entra ID makes it, a JSON web token."""
        until = time.time() + self.lifetime
        payload = {"aud": audience, "exp": int(until), "jti": next(self._serial), **claims}
        token = f"{_part({'typ': 'JWT', 'alg': 'RS256'})}.{_part(payload)}.c2lnbmF0dXJl"
        self._good[token] = audience.rstrip("/"), until
        return token

    def accepts(self, token: str, audience: str) -> bool:
        """True for a token for this audience that was neither revoked nor has expired."""
        meant, until = self._good.get(token, ("", 0.0))
        return meant == audience.rstrip("/") and until > time.time()

    def revoke(self) -> None:
        """No token that was issued is good any more."""
        self._good.clear()

    @property
    def tokens(self) -> tuple[str, ...]:
        """Every good token, to look for where none may be."""
        return tuple(self._good)

    def site(self, asked: Asked) -> Reply:
        """login.microsoftonline.com."""
        if self.down:
            return Reply(503, b"<html>Service Unavailable</html>", {"Content-Type": "text/html"})
        if asked.path.endswith("/discovery/instance"):
            return json_reply(_instance())
        if asked.path.endswith("/.well-known/openid-configuration"):
            return json_reply(_endpoints(asked.path.split("/")[1]))
        if asked.method == "POST" and asked.path.startswith(f"/{TENANT}/oauth2/"):
            return self._token(asked.form)
        text = "AADSTS90002: Tenant not found. Check to make sure you have the correct tenant ID."
        return json_reply({"error": "invalid_request", "error_description": text}, 400)

    def _token(self, form: dict[str, str]) -> Reply:
        if (form.get("client_id"), form.get("client_secret")) != (CLIENT_ID, self.client_secret):
            text = "AADSTS7000215: Invalid client secret provided. Ensure the secret being sent is the value."
            return json_reply({"error": "invalid_client", "error_description": text, "error_codes": [7000215]}, 401)
        audience = form.get("resource") or form["scope"].removesuffix("/.default")
        token = self.issue(audience, appid=CLIENT_ID)
        # Version 1 of the endpoint writes numbers as text.
        seconds = str(self.lifetime) if "resource" in form else self.lifetime
        return json_reply({"token_type": "Bearer", "expires_in": seconds, "access_token": token})

    def managed_identity(self, asked: Asked) -> Reply:
        """The endpoint on the machine itself."""
        if asked.headers.get("x-identity-header") != self.identity_header:
            return json_reply({"statusCode": 401, "message": "the header is missing"}, 401)
        if self.down:
            return json_reply({"statusCode": 503, "message": "come again"}, 503)
        if asked.query.get("client_id", CLIENT_ID) != CLIENT_ID:
            return json_reply({"statusCode": 400, "message": "No User Assigned Identity found"}, 400)
        resource = asked.query["resource"]
        token = self.issue(resource, appid=CLIENT_ID)
        expires = str(int(time.time()) + self.lifetime)
        return json_reply({"access_token": token, "expires_on": expires, "resource": resource, "token_type": "Bearer"})


def _instance() -> dict[str, object]:
    aliases = ["login.microsoftonline.com", "login.windows.net", "login.microsoft.com", "sts.windows.net"]
    known = {"preferred_network": HOST, "preferred_cache": "login.windows.net", "aliases": aliases}
    return {
        "tenant_discovery_endpoint": f"https://{HOST}/{TENANT}/v2.0/.well-known/openid-configuration",
        "api-version": "1.1",
        "metadata": [known],
    }


def _endpoints(tenant: str) -> dict[str, str]:
    return {
        "token_endpoint": f"https://{HOST}/{tenant}/oauth2/v2.0/token",
        "authorization_endpoint": f"https://{HOST}/{tenant}/oauth2/v2.0/authorize",
        "issuer": f"https://{HOST}/{tenant}/v2.0",
    }
