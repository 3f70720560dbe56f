"""A very small HTTP server that answers as told and remembers what it was asked."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from databricks.sdk.core import Config

from pm_dagster.config.settings import Settings
from pm_dagster.databricks.runs import SdkRuns
from pm_dagster.databricks.transport import OneAttempt
from pm_dagster_tests.serving import serving

#: Neither of a known token's form nor guessable: only knowing it can hide it.
TOKEN = "quite-an-ordinary-looking-word"


@dataclass(frozen=True)
class Asked:
    """One request as it came."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: Mapping[str, object]


@dataclass(frozen=True)
class Reply:
    """One answer. ``behaviour`` other than "answer" breaks it: "reset", "close", "truncate", "hang"."""

    status: int = 200
    body: str = "{}"
    headers: Mapping[str, str] = field(default_factory=dict)
    behaviour: str = "answer"


def json_reply(status: int = 200, headers: Mapping[str, str] | None = None, **body: object) -> Reply:
    """A JSON answer."""
    return Reply(status, json.dumps(body), headers or {})


class TinyServer:
    """``answer`` decides each reply; ``asked`` holds the requests in order."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.answer: Callable[[Asked], Reply] = lambda _asked: Reply()
        self.host = ""
        self.released = threading.Event()

    def replies(self, *replies: Reply) -> None:
        """One reply after the other, the last for ever."""
        queue = list(replies)
        self.answer = lambda _asked: queue.pop(0) if len(queue) > 1 else queue[0]

    def config(self) -> Config:
        """The SDK's configuration for this server."""
        return Config(host=self.host, token=TOKEN)

    def attempt(self, timeout: float = 30.0) -> OneAttempt:
        """The transport on this server."""
        return OneAttempt(self.config(), timeout)

    def runs(self, timeout: float = 30.0) -> SdkRuns:
        """The adapter on this server."""
        return SdkRuns(self.config(), Settings(http_timeout_seconds=timeout))


def _fields(content: bytes, kind: str) -> Mapping[str, object]:
    if kind == "application/x-www-form-urlencoded":
        return {name: values[0] for name, values in parse_qs(content.decode()).items()}
    fields: Mapping[str, object] = json.loads(content or b"{}")
    return fields


def _handler(server: TinyServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._serve()

        def do_POST(self) -> None:
            self._serve()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 the name is the base class's
            """Say nothing."""

        def _serve(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = _fields(self.rfile.read(length), self.headers.get("Content-Type") or "")
            parts = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            asked = Asked(self.command, parts.path, query, dict(self.headers.items()), body)
            server.asked.append(asked)
            self._carry_out(server.answer(asked))

        def _carry_out(self, reply: Reply) -> None:
            self.close_connection = reply.behaviour != "answer"
            if reply.behaviour == "reset":
                # Linger 0: the peer gets a reset instead of an end.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return
            if reply.behaviour == "hang":
                server.released.wait(60)
            if reply.behaviour in ("close", "hang"):
                return
            payload = reply.body.encode()
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(payload) + (100 if reply.behaviour == "truncate" else 0)))
            self.end_headers()
            self.wfile.write(payload)

    return Handler


@contextmanager
def tiny_server() -> Iterator[TinyServer]:
    """A server for one test."""
    server = TinyServer()
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(server)) as http:
        http.daemon_threads = True
        server.host = f"http://127.0.0.1:{http.server_address[1]}"
        with serving(http):
            try:
                yield server
            finally:
                server.released.set()
