"""The messages of a Postgres connection, as far as a front has to know them.

Put here: reading them whole, and reaching the server. Keep out: what is done about them (``wire.py``). Facts:
https://www.postgresql.org/docs/current/protocol-message-formats.html
"""

from __future__ import annotations

import socket
import struct
from typing import BinaryIO

#: (host, port), or the path of a Unix socket.
Target = str | tuple[str, int]
QUERY, READY, IDLE = b"Q", b"Z", b"I"

_SSL_REQUEST, _GSS_REQUEST = 80877103, 80877104
_LENGTH = struct.Struct("!I")


def greeting(source: BinaryIO, client: socket.socket) -> bytes:
    """A client's first message that is not a wish for encryption, which is declined."""
    while True:
        head = _exactly(source, 4)
        body = _exactly(source, _LENGTH.unpack(head)[0] - 4)
        if _LENGTH.unpack(body[:4])[0] not in (_SSL_REQUEST, _GSS_REQUEST):
            return head + body
        client.sendall(b"N")


def message(source: BinaryIO) -> tuple[bytes, bytes]:
    """The next message: its kind, and all of it. Raises OSError at the end of the connection."""
    head = _exactly(source, 5)
    return head[:1], head + _exactly(source, _LENGTH.unpack(head[1:])[0] - 4)


def sql_of(query: bytes) -> str:
    """The text of a simple query."""
    return query[5:-1].decode("utf-8", "replace")


def connected(target: Target) -> socket.socket:
    """A connection to the server. Raises OSError."""
    if isinstance(target, tuple):
        server = socket.create_connection(target)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return server
    server = socket.socket(socket.AF_UNIX)
    try:
        server.connect(target)
    except OSError:
        server.close()
        raise
    return server


def opened(end: socket.socket | None) -> BinaryIO:
    """The socket as a file to read from. Raises OSError when there is none."""
    if end is None:
        raise ConnectionError("not connected")
    return end.makefile("rb")


def _exactly(source: BinaryIO, count: int) -> bytes:
    data = source.read(count)
    if len(data) < count:
        raise ConnectionError("the peer is gone")
    return data
