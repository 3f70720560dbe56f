"""The ASGI application: which path leads to which handler."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.convertors import PathConvertor, register_url_convertor
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from pm_dagster.sandbox.workspace import identity, permissions
from pm_dagster.sandbox.workspace.call import Call, Reply, body_of, unknown_call
from pm_dagster.sandbox.workspace.control import Control
from pm_dagster.sandbox.workspace.files import IMPORT_FILE, FilesApi
from pm_dagster.sandbox.workspace.gate import Gate, Handler, Parts
from pm_dagster.sandbox.workspace.jobs_api import JobsApi
from pm_dagster.sandbox.workspace.page import Pages
from pm_dagster.sandbox.workspace.permissions import PermissionsApi
from pm_dagster.sandbox.workspace.runs_api import RunsApi
from pm_dagster.sandbox.workspace.secret_scopes import SecretsApi
from pm_dagster.sandbox.workspace.state import WorkspaceState
from pm_dagster.sandbox.workspace.views import Lens

_VERSIONS = ("2.0", "2.1", "2.2")


class AnyPath(PathConvertor):
    """A rest of a path, line feeds included, which Starlette's own takes for its end."""

    regex = r"[\s\S]*"


register_url_convertor("any", AnyPath())


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
        return handler(Call(version, request.query_params, body, Lens(identity.base_url(request), self._switches)))


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
    return Starlette(
        lifespan=lambda _: _executing(parts.state),
        routes=[
            Route("/api/{version}/jobs/{call:path}", JobsRoutes(parts)),
            *_identity_routes(parts),
            *_object_routes(parts),
            *_table_routes(parts),
            Route("/api/{rest:any}", OneRoute(parts, "unknown", _unknown)),
            *Control(parts).routes(),
            Route("/", pages.overview, methods=["GET"]),
            Route("/jobs/{job_id:int}", pages.job, methods=["GET"]),
            Route("/jobs/{job_id:int}/runs/{run_id:int}", pages.run, methods=["GET"]),
        ],
        # A foreign page that points its own name at 127.0.0.1 would otherwise read this one. The lone bracket is what
        # older versions of the middleware see of an IPv6 address; no name begins with it.
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]", "["])],
    )


@asynccontextmanager
async def _executing(state: WorkspaceState) -> AsyncIterator[None]:
    """Deployed tasks execute while the workspace answers, and no longer."""
    state.open()
    try:
        yield
    finally:
        state.close()


def _identity_routes(parts: Parts) -> list[BaseRoute]:
    open_: list[tuple[str, str, Handler]] = [
        ("/.well-known/databricks-config", "host-metadata", identity.host_metadata),
        ("/oidc/.well-known/oauth-authorization-server", "oidc/discovery", identity.discovery),
        ("/oidc/v1/token", "oidc/token", identity.TokenEndpoint(parts.tokens).issue),
    ]
    return [
        *(Route(path, OneRoute(parts, name, handler, open_=True)) for path, name, handler in open_),
        Route("/api/2.0/preview/scim/v2/Me", OneRoute(parts, "scim/Me", identity.me)),
        Route("/telemetry-ext", OneRoute(parts, "telemetry", identity.telemetry)),
    ]


def _object_routes(parts: Parts) -> list[BaseRoute]:
    files = FilesApi(parts.files)
    exists = {"jobs": lambda number: parts.state.job(number, 404), "directories": parts.files.check_folder}
    lists = PermissionsApi(parts.permissions, exists)
    one = "/api/2.0/permissions/{object_type}/{object_id}"
    return [
        Route(IMPORT_FILE + "/{path:any}", OneRoute(parts, "workspace-files/import-file", files.import_file)),
        Route("/api/2.0/workspace/import", OneRoute(parts, "workspace/import", files.import_)),
        Route(one, OneRoute(parts, "permissions", lists.handle)),
        Route(one + "/permissionLevels", OneRoute(parts, "permissions/levels", lists.levels)),
    ]


def _table_routes(parts: Parts) -> list[BaseRoute]:
    files, scopes = FilesApi(parts.files), SecretsApi(parts.secrets)
    table: Mapping[tuple[str, str], Callable[[Call], Reply]] = {
        ("GET", "workspace/get-status"): files.get_status, ("POST", "workspace/mkdirs"): files.mkdirs,
        ("GET", "workspace/list"): files.list_objects, ("GET", "workspace/export"): files.export,
        ("POST", "workspace/delete"): files.delete,
        ("POST", "secrets/scopes/create"): scopes.make_scope, ("GET", "secrets/scopes/list"): scopes.list_scopes,
        ("POST", "secrets/scopes/delete"): scopes.delete_scope, ("POST", "secrets/put"): scopes.put,
        ("GET", "secrets/list"): scopes.list_keys, ("GET", "secrets/get"): scopes.get,
        ("POST", "secrets/delete"): scopes.delete,
        ("GET", "policies/clusters/list"): permissions.list_policies,
        ("GET", "policies/clusters/get"): permissions.get_policy,
    }  # fmt: skip
    return [
        Route(f"/api/2.0/{name}", OneRoute(parts, name, _as_handler(parts, method, handler)))
        for (method, name), handler in table.items()
    ]


def _as_handler(parts: Parts, method: str, handler: Callable[[Call], Reply]) -> Handler:
    def handle(request: Request, raw: bytes) -> Reply:
        if request.method != method:
            return _unknown(request, raw)
        body = body_of(raw) if method == "POST" else {}
        return handler(Call("2.0", request.query_params, body, Lens(identity.base_url(request), parts.switches)))

    return handle


def _unknown(request: Request, _: bytes) -> Reply:
    raise unknown_call(request)
