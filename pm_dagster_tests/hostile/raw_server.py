"""An HTTP server on loopback that answers with exactly the bytes it is given, in the pieces it is given.

Put here: the server, and answers as bytes. Keep out: what the bytes mean to whom.
"""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

from databricks.sdk.core import Config

from pm_dagster.config.settings import Settings
from pm_dagster.databricks.runs import SdkRuns
from pm_dagster_tests.serving import serving

#: Neither of a known token's form nor guessable: only knowing it can hide it.
TOKEN = "another-ordinary-looking-word"


class RawServer:
    """``answer`` gives the pieces to send for a request line; ``asked`` holds the requests' heads in order."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answer: Callable[[str], Iterable[bytes]] = lambda _line: [answer(b"{}")]
        self.host = ""
        self.released = threading.Event()

    def says(self, *pieces: bytes) -> None:
        """Always answer so."""
        self.answer = lambda _line: pieces

    def runs(self, timeout: float = 30.0) -> SdkRuns:
        """The adapter on this server."""
        config = Config(host=self.host, token=TOKEN)
        return SdkRuns(config, Settings(http_timeout_seconds=timeout))


def answer(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    """A whole answer; a Content-Length among the headers replaces the right one."""
    lines = [f"HTTP/1.1 {status}", *headers]
    if not any(header.lower().startswith("content-length") for header in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode() + body


def json_answer(value: object, status: str = "200 OK") -> bytes:
    """A value as JSON; half surrogates and the like stay escapes."""
    return answer(json.dumps(value).encode(), status, "Content-Type: application/json")


def _handler(server: RawServer) -> type[socketserver.StreamRequestHandler]:
    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            # Clients that hang up are the point.
            with suppress(OSError):
                head = b""
                while not head.endswith(b"\r\n\r\n"):
                    line = self.rfile.readline()
                    if not line:
                        return
                    head += line
                text = head.decode("latin-1")
                lengths = [line for line in text.lower().splitlines() if line.startswith("content-length:")]
                self.rfile.read(int(lengths[0].partition(":")[2]) if lengths else 0)
                server.asked.append(text)
                for piece in server.answer(text.splitlines()[0]):
                    self.wfile.write(piece)

        def finish(self) -> None:
            with suppress(OSError):
                super().finish()

    return Handler


@contextmanager
def raw_server() -> Iterator[RawServer]:
    """A server, and nothing of it left afterwards."""
    server = RawServer()
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _handler(server)) as tcp:
        tcp.daemon_threads = True
        server.host = f"http://127.0.0.1:{tcp.server_address[1]}"
        with serving(tcp):
            try:
                yield server
            finally:
                server.released.set()
