"""Dagster's web server for the sandbox, closed to other people's pages: ``python -m pm_dagster.sandbox.webserver``.

dagster-webserver (1.13) carries out whatever comes: mutations by GET, for any Host and Origin. So a page on the
internet that the developer has open could start runs here.

This module decides which requests pass; the server and its options are Dagster's own.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from dagster_webserver import cli
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

_OURS = ("127.0.0.1", "localhost", "::1")
#: How dagster_webserver.cli makes its application.
_BUILD = "create_app_from_workspace_process_context"
_OWN_PAGES = ("", "same-origin", "none")


class OwnPagesOnly:
    """Lets through what this server's own pages, and programs that are no browsers, ask for."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or open a web socket."""
        why = "" if scope["type"] == "lifespan" else objection(scope)
        if not why:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": why})
        else:
            await PlainTextResponse(why, 403)(scope, receive, send)


def objection(scope: Scope) -> str:
    """Why a request may not pass, empty when it may.

    A name that somebody pointed at this machine shows in Host; another page in Origin, which every browser sends with
    a POST, or in the newer Sec-Fetch-Site (https://w3c.github.io/webappsec-fetch-metadata/). An image or a link sends
    neither in older ones, so a query may not come by GET at all.
    """
    headers = Headers(scope=scope)
    host, origin = headers.get("host", ""), headers.get("origin")
    if _name(f"//{host}") not in _OURS:
        return "Invalid host header"
    if origin is not None and _authority(origin) != host:
        return "Only this server's own pages may ask"
    moves_here = headers.get("sec-fetch-mode") == "navigate"
    if headers.get("sec-fetch-site", "") not in _OWN_PAGES and not moves_here:
        return "Only this server's own pages may ask"
    if scope.get("method") == "GET" and scope["path"].endswith("/graphql") and scope["query_string"]:
        return "Queries come by POST"
    return ""


def _authority(url: str) -> str:
    try:
        return urlsplit(url).netloc
    except ValueError:
        return ""


def _name(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def main() -> None:
    """As ``dagster-webserver``."""
    # Dagster has no place of its own for a middleware.
    names: dict[str, Any] = vars(cli)
    build = names[_BUILD]
    names[_BUILD] = lambda *args, **more: OwnPagesOnly(build(*args, **more))
    names["main"]()


if __name__ == "__main__":
    main()
