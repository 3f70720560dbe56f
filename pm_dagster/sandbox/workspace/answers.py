"""What goes back over the wire: JSON, refusals, every way in which an answer can be broken, and the socket beneath."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
from dataclasses import dataclass, field, replace
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from pm_dagster.sandbox.workspace.errors import ApiError
from pm_dagster.sandbox.workspace.faults import Fault
from pm_dagster.sandbox.workspace.model import WORKSPACE_ID

SCOPE_KEY = "sandbox.transport"


class CuttableProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]  # a class chosen at import time
    """Uvicorn's own HTTP protocol; the scope of each request carries the connection."""

    app: Any

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Wrap the application once per connection."""
        super().connection_made(transport)
        inner: Any = self.app

        async def with_transport(scope: Scope, receive: Receive, send: Send) -> None:
            scope[SCOPE_KEY] = transport
            await inner(scope, receive, send)

        self.app = with_transport


def cut(transport: asyncio.Transport, *, reset: bool) -> None:
    """End the connection now: by RST, or by FIN without another byte."""
    if reset:
        # Linger on with zero seconds makes close() send RST instead of FIN.
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


_JSON = "application/json"
_HTML = "<!doctype html><html><head><title>Sign in</title></head><body><p>Please sign in.</p></body></html>"


@dataclass(frozen=True)
class Answer:
    """An HTTP answer; ``cut`` is reset or fin when none is given, ``truncated`` when half of it is."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=lambda: {"content-type": _JSON})
    cut: str = ""
    truncated: bool = False


def ok(body: dict[str, Any]) -> Answer:
    """A plain 200."""
    return Answer(200, json.dumps(body).encode())


def download(content: bytes) -> Answer:
    """A file's bytes."""
    return Answer(200, content, {"content-type": "application/octet-stream"})


def refusal(error: ApiError) -> Answer:
    """An error in the shape of the API."""
    return Answer(error.status, json.dumps(error.body).encode())


def throttled(retry_after: int | str | None) -> Answer:
    """The answer to one request too many."""
    answer = refusal(ApiError(429, "REQUEST_LIMIT_EXCEEDED", "Rate limit exceeded for this endpoint."))
    if retry_after is None:
        return answer
    return replace(answer, headers={**answer.headers, "retry-after": str(retry_after)})


async def broken(fault: Fault, answer: Answer | None) -> Answer | None:
    """What the fault makes of the answer; None: go on as if nothing had happened."""
    if fault.kind == "hang":
        await asyncio.sleep(max(0.0, fault.seconds + random.uniform(-fault.jitter, fault.jitter)))  # noqa: S311 no secret
        return Answer(0, b"", cut="fin") if fault.drop else None
    if fault.kind in ("reset", "fin"):
        return Answer(0, b"", cut=fault.kind)
    if fault.kind == "truncated":
        return replace(answer or ok({"error_code": "", "message": "cut off"}), truncated=True)
    if fault.kind == "html":
        return Answer(200, (fault.body or _HTML).encode(), {"content-type": "text/html", **fault.headers})
    if fault.kind == "text":
        text = "upstream connect error" if fault.body is None else fault.body
        return Answer(500, text.encode(), {"content-type": "text/plain", **fault.headers})
    plain = refusal(ApiError(fault.status, fault.code, fault.message))
    body = plain.body if fault.body is None else fault.body.encode()
    return Answer(fault.status, body, {**plain.headers, **fault.headers})


async def send(answer: Answer, scope: Scope, receive: Receive, send: Send) -> None:
    """Give the answer, or as much of it as it is meant to give."""
    if answer.cut:
        cut(scope[SCOPE_KEY], reset=answer.cut == "reset")
        # Uvicorn complains about an application that returns without an answer before it saw the connection go.
        while (await receive())["type"] != "http.disconnect":
            pass
    elif answer.truncated:
        head = Response(answer.body, answer.status, answer.headers).raw_headers
        await send({"type": "http.response.start", "status": answer.status, "headers": head})
        await send({"type": "http.response.body", "body": answer.body[: len(answer.body) // 2], "more_body": True})
        scope[SCOPE_KEY].close()
        while (await receive())["type"] != "http.disconnect":
            pass
    else:
        headers = {**answer.headers, "x-databricks-org-id": WORKSPACE_ID}
        await Response(answer.body, answer.status, headers)(scope, receive, send)
