"""An Azure Database for PostgreSQL: TLS or nothing, and the password asked for behind it.

In front of the embedded server, which speaks no TLS. It plays the beginning of a connection as the service does, a
password or a token of Entra ID in the place of one, and hands on everything after it:
https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-START-UP
"""

from __future__ import annotations

import socket
import socketserver
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pm_dagster_tests.serving import serving

_SSL_REQUEST, _GSS_REQUEST, _VERSION_3 = 80877103, 80877104, 196608
_SUPERUSER = "postgres"


class Front:
    """Who may come in: ``accepts(user, password)`` decides."""

    def __init__(self, context: ssl.SSLContext, backend: Path, accepts: Callable[[str, str], bool]) -> None:
        self.context, self.backend, self.accepts = context, backend, accepts
        #: The password, or what stood for one, of each connection.
        self.shown: list[str] = []
        #: What it says to a wrong password, if not the usual.
        self.refusal = ""
        self.port = 0

    def serve(self, plain: socket.socket) -> None:
        """One connection."""
        startup = _message(plain)
        if _code(startup) == _GSS_REQUEST:
            plain.sendall(b"N")
            startup = _message(plain)
        if _code(startup) != _SSL_REQUEST:
            plain.sendall(_fatal("28000", 'no pg_hba.conf entry for host "127.0.0.1", no encryption'))
            return
        plain.sendall(b"S")
        with self.context.wrap_socket(plain, server_side=True) as client:
            self._behind_tls(client)

    def _behind_tls(self, client: ssl.SSLSocket) -> None:
        startup = _message(client)
        if _code(startup) != _VERSION_3:
            # A request to cancel a statement, which the tests do not need.
            return
        words = startup[4:].rstrip(b"\0").split(b"\0")
        given = dict(zip(words[::2], words[1::2], strict=True))
        user = given[b"user"].decode()
        client.sendall(b"R" + struct.pack("!ii", 8, 3))
        client.recv(1)
        password = _message(client).rstrip(b"\0").decode()
        self.shown.append(password)
        if not self.accepts(user, password):
            client.sendall(_fatal("28P01", self.refusal or f'password authentication failed for user "{user}"'))
            return
        given[b"user"] = _SUPERUSER.encode()
        body = struct.pack("!i", _VERSION_3) + b"".join(k + b"\0" + v + b"\0" for k, v in given.items()) + b"\0"
        with socket.socket(socket.AF_UNIX) as server:
            server.connect(str(self.backend))
            server.sendall(struct.pack("!i", len(body) + 4) + body)
            _pump_both(client, server)


def _message(stream: socket.socket) -> bytes:
    """A length and what follows it."""
    (length,) = struct.unpack("!i", _exactly(stream, 4))
    return _exactly(stream, length - 4)


def _exactly(stream: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        part = stream.recv(count - len(found))
        if not part:
            raise ConnectionError
        found += part
    return found


def _code(message: bytes) -> int:
    return int.from_bytes(message[:4], "big")


def _fatal(code: str, text: str) -> bytes:
    fields = b"".join(kind + value.encode() + b"\0" for kind, value in ((b"S", "FATAL"), (b"C", code), (b"M", text)))
    return b"E" + struct.pack("!i", len(fields) + 5) + fields + b"\0"


def _pump_both(client: ssl.SSLSocket, server: socket.socket) -> None:
    back = threading.Thread(target=_pump, args=(server, client), daemon=True)
    back.start()
    _pump(client, server)
    back.join()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while part := source.recv(65536):
            target.sendall(part)
    with suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)


@contextmanager
def postgres_front(context: ssl.SSLContext, backend: Path, accepts: Callable[[str, str], bool]) -> Iterator[Front]:
    """A front on a free port of 127.0.0.1 for the server that listens on the Unix socket ``backend``."""
    front = Front(context, backend, accepts)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            try:
                front.serve(self.request)
            except OSError:
                # The client went away, or did not like the certificate.
                return

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        front.port = int(server.server_address[1])
        with serving(server):
            yield front
