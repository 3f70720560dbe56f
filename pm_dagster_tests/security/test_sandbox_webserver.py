"""Dagster's UI in the sandbox: its own pages work, another page's requests do not."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from pm_dagster.sandbox.webserver import OwnPagesOnly

HOST = "127.0.0.1:3000"
_CROSS = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}


async def _app(scope: Scope, _receive: Receive, send: Send) -> None:
    """Says that it was reached."""
    await send({"type": f"{scope['type']}.reached"})


def _reached(path: str, headers: Mapping[str, str], method: str = "POST", kind: str = "http") -> bool:
    """Whether a request gets to the application; if not, it must have been refused."""
    sent: list[Message] = []
    path, _, query = path.partition("?")
    given = {"host": HOST, **headers}
    scope: dict[str, Any] = {"type": kind, "path": path, "query_string": query.encode(), "method": method}
    scope["headers"] = [(name.encode(), value.encode()) for name, value in given.items()]

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(OwnPagesOnly(_app)(scope, receive, send))
    if sent[0]["type"] == f"{kind}.reached":
        return True
    assert sent[0].get("status", sent[0].get("code")) in (403, 1008)
    return False


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": f"http://{HOST}"},
        {"origin": f"http://{HOST}", "sec-fetch-site": "same-origin", "sec-fetch-mode": "cors"},
        {"host": "localhost:3000", "origin": "http://localhost:3000"},
        {"host": "[::1]:3000"},
        {"sec-fetch-site": "none", "sec-fetch-mode": "navigate"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"},
    ],
)
def test_own_pages_and_programs(headers: dict[str, str]) -> None:
    assert _reached("/graphql", headers)
    assert _reached("/runs", headers, "GET")
    assert _reached("/graphql", headers, "GET", "websocket")


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example.com"},
        {"origin": "http://127.0.0.1:8080"},
        {"origin": f"http://{HOST}.evil.example.com"},
        {"origin": "null"},
        {"origin": ""},
        {"origin": "http://[::1"},
        {"host": "evil.example.com", "origin": "http://evil.example.com"},
        {"host": "127.0.0.1.example.com:3000"},
        {"host": "[::1"},
        {"host": ""},
        _CROSS,
        {**_CROSS, "sec-fetch-site": "same-site"},
    ],
)
def test_other_pages(headers: dict[str, str]) -> None:
    assert not _reached("/graphql", headers)
    assert not _reached("/server_info", headers, "GET")
    assert not _reached("/graphql", headers, "GET", "websocket")


def test_no_query_comes_by_get() -> None:
    assert not _reached("/graphql?query=mutation{x}", {}, "GET")
    assert not _reached("/a/graphql?a=1&query=mutation{x}", {}, "GET")
    assert not _reached("/graphql?%71uery=mutation{x}", {}, "GET")
    assert _reached("/graphql", {}, "GET")
