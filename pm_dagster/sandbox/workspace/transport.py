"""The socket beneath a request, so that a fault can cut it.

Put here: the uvicorn protocol that puts its transport into the ASGI scope, and the two ways to end a connection. ASGI
itself offers neither. Keep out: when to cut.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.auto import AutoHTTPProtocol

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
