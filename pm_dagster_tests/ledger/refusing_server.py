"""A server that answers every start-up message with one ErrorResponse, as a real one does that refuses a connection.

Put here: the messages of the protocol that it takes: https://www.postgresql.org/docs/current/protocol-message-formats.html
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

_SSL_REQUEST, _GSS_REQUEST = 80877103, 80877104


@dataclass
class RefusingServer:
    """``answer`` is what it sends, ``seen`` how many connections came."""

    port: int
    answer: bytes
    seen: list[int] = field(default_factory=list)

    @property
    def url(self) -> str:
        """A libpq URL that leads here."""
        return f"postgresql://somebody:hunter2@127.0.0.1:{self.port}/somewhere"


def error_response(code: str, words: bytes, severity: bytes = b"FATAL") -> bytes:
    """The message; ``severity`` is translated too, unless the server is asked for the untranslated field."""
    fields = [b"S" + severity, b"VFATAL", b"C" + code.encode(), b"M" + words, b"Fauth.c", b"L1", b"Rauth_failed"]
    body = b"".join(each + b"\0" for each in fields) + b"\0"
    return b"E" + (len(body) + 4).to_bytes(4, "big") + body


@contextmanager
def refusing_server(answer: bytes = b"") -> Iterator[RefusingServer]:
    """Listen on loopback until the end of the block."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = RefusingServer(listening.getsockname()[1], answer)
        thread = threading.Thread(target=_serve, args=(listening, server), daemon=True)
        thread.start()
        yield server
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()


def _serve(listening: socket.socket, server: RefusingServer) -> None:
    while True:
        try:
            client, _ = listening.accept()
        except OSError:
            return
        server.seen.append(1)
        with client, suppress(OSError):
            client.settimeout(10)
            while int.from_bytes(_message(client)[:4], "big") in (_SSL_REQUEST, _GSS_REQUEST):
                client.sendall(b"N")
            client.sendall(server.answer)


def _message(client: socket.socket) -> bytes:
    length = int.from_bytes(client.recv(4, socket.MSG_WAITALL), "big")
    return client.recv(length - 4, socket.MSG_WAITALL)
