"""The ASGI application: which path leads to which handler.

Put here: routes, the identity and login calls. Keep out: the handlers of jobs and runs, the control calls, the page.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from pm_dagster.sandbox.workspace.auth import USER_ID, USER_NAME
from pm_dagster.sandbox.workspace.call import Call, Reply, body_of
from pm_dagster.sandbox.workspace.control import Control
from pm_dagster.sandbox.workspace.errors import ApiError, LoginError
from pm_dagster.sandbox.workspace.gate import Gate, Handler, Parts
from pm_dagster.sandbox.workspace.jobs_api import JobsApi
from pm_dagster.sandbox.workspace.page import Pages
from pm_dagster.sandbox.workspace.runs_api import RunsApi
from pm_dagster.sandbox.workspace.views import Lens

_VERSIONS = ("2.0", "2.1", "2.2")


class JobsRoutes:
    """/api/{version}/jobs/..."""

    def __init__(self, parts: Parts) -> None:
        self._gate, self._switches = Gate(parts), parts.switches
        jobs, runs = JobsApi(parts.state), RunsApi(parts.state)
        self._calls: dict[tuple[str, str], Callable[[Call], Reply]] = {
            ("POST", "create"): jobs.create, ("GET", "get"): jobs.get, ("GET", "list"): jobs.list_jobs,
            ("POST", "update"): jobs.update, ("POST", "reset"): jobs.reset, ("POST", "delete"): jobs.delete,
            ("POST", "run-now"): runs.run_now, ("POST", "runs/repair"): runs.repair, ("GET", "runs/get"): runs.get,
            ("GET", "runs/list"): runs.list_runs, ("POST", "runs/cancel"): runs.cancel,
            ("POST", "runs/delete"): runs.delete, ("GET", "runs/get-output"): runs.get_output,
        }  # fmt: skip

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""
        endpoint = scope["path_params"]["call"]
        await self._gate.pass_through(endpoint, self._handle, scope, receive, send)

    def _handle(self, request: Request, raw: bytes) -> Reply:
        version, name = request.path_params["version"], request.path_params["call"]
        handler = self._calls.get((request.method, name)) if version in _VERSIONS else None
        if handler is None:
            return _unknown(request, raw)
        body = body_of(raw) if request.method == "POST" else {}
        return handler(Call(version, request.query_params, body, Lens(base_url(request), self._switches)))


class OneRoute:
    """A path with a single handler."""

    def __init__(self, parts: Parts, endpoint: str, handler: Handler, *, open_: bool = False) -> None:
        self._gate, self._endpoint, self._handler, self._open = Gate(parts), endpoint, handler, open_

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""
        await self._gate.pass_through(self._endpoint, self._handler, scope, receive, send, open_=self._open)


def build_app(parts: Parts) -> Starlette:
    """The application over these parts."""
    pages = Pages(parts)

    def token(request: Request, raw: bytes) -> Reply:
        return _issue(parts, request, raw)

    return Starlette(
        routes=[
            Route("/api/{version}/jobs/{call:path}", JobsRoutes(parts)),
            Route("/api/2.0/preview/scim/v2/Me", OneRoute(parts, "scim/Me", _me)),
            Route(
                "/oidc/.well-known/oauth-authorization-server",
                OneRoute(parts, "oidc/discovery", _discovery, open_=True),
            ),
            Route("/oidc/v1/token", OneRoute(parts, "oidc/token", token, open_=True)),
            Route("/api/{rest:path}", OneRoute(parts, "unknown", _unknown)),
            *Control(parts).routes(),
            Route("/", pages.overview, methods=["GET"]),
            Route("/jobs/{job_id:int}", pages.job, methods=["GET"]),
            Route("/jobs/{job_id:int}/runs/{run_id:int}", pages.run, methods=["GET"]),
        ],
        # A foreign page that points its own name at 127.0.0.1 would otherwise read this one. The lone bracket is what
        # older versions of the middleware see of an IPv6 address; no name begins with it.
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]", "["])],
    )


def base_url(request: Request) -> str:
    """Where the caller reached the workspace."""
    return str(request.base_url).rstrip("/")


def _unknown(request: Request, _: bytes) -> Reply:
    raise ApiError(404, "ENDPOINT_NOT_FOUND", f"No API found for '{request.method} {request.url.path}'")


def _me(_: Request, __: bytes) -> Reply:
    return Reply({"id": USER_ID, "userName": USER_NAME, "displayName": "Sandbox", "active": True})


def _discovery(request: Request, _: bytes) -> Reply:
    base = base_url(request)
    return Reply(
        {
            "issuer": f"{base}/oidc",
            "authorization_endpoint": f"{base}/oidc/v1/authorize",
            "token_endpoint": f"{base}/oidc/v1/token",
            "grant_types_supported": ["client_credentials"],
        }
    )


def _issue(parts: Parts, request: Request, raw: bytes) -> Reply:
    form = {name: values[0] for name, values in parse_qs(raw.decode("utf-8", "replace")).items()}
    if request.method != "POST" or form.get("grant_type") != "client_credentials":
        raise LoginError(400, "unsupported_grant_type", "POST with grant_type=client_credentials")
    client_id, secret = form.get("client_id", ""), form.get("client_secret", "")
    scheme, _, basic = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            client_id, _, secret = base64.b64decode(basic).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            client_id = secret = ""
    token = parts.tokens.issue(client_id, secret)
    if token is None:
        raise LoginError(401, "invalid_client", "Client authentication failed")
    return Reply(
        {"access_token": token, "token_type": "Bearer", "expires_in": parts.tokens.lifetime, "scope": "all-apis"}
    )
