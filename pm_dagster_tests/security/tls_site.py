"""A server over TLS that is wrong in one way.

Put here: certificates and versions that must be refused, and servers that break TLS. Keep out: what is expected.
"""

from __future__ import annotations

import datetime as dt
import socketserver
import ssl
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import trustme

from pm_dagster_tests.serving import serving

_LONG_AGO = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
NAME = "localhost"


def _good(authority: trustme.CA, context: ssl.SSLContext) -> None:
    authority.issue_cert(NAME).configure_cert(context)


def _other_name(authority: trustme.CA, context: ssl.SSLContext) -> None:
    authority.issue_cert("elsewhere.example.com").configure_cert(context)


def _expired(authority: trustme.CA, context: ssl.SSLContext) -> None:
    authority.issue_cert(NAME, not_after=_LONG_AGO).configure_cert(context)


def _unknown_authority(_: trustme.CA, context: ssl.SSLContext) -> None:
    trustme.CA().issue_cert(NAME).configure_cert(context)


def _old_version(authority: trustme.CA, context: ssl.SSLContext) -> None:
    _good(authority, context)
    with _deprecated():
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")


@contextmanager
def _deprecated() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


#: What is wrong with the server, and a word that the refusal must contain.
WRONG: Mapping[str, tuple[Callable[[trustme.CA, ssl.SSLContext], None], str]] = {
    "another host's certificate": (_other_name, "(?i)hostname mismatch|does not match|doesn't match"),
    "an expired certificate": (_expired, "expired"),
    "an unknown authority": (_unknown_authority, "(?i)self.signed|unable to get local issuer"),
    "TLS 1.1": (_old_version, "(?i)version|protocol|alert"),
}


class TlsServer:
    """``port`` listens on loopback; ``heard`` holds what was sent inside TLS; ``answer`` gets it and the session."""

    def __init__(self, context: ssl.SSLContext, answer: Callable[[bytes, ssl.SSLSocket], None]) -> None:
        self.context, self.answer = context, answer
        self.heard: list[bytes] = []
        self.port = 0

    @property
    def url(self) -> str:
        """As DATABRICKS_HOST holds it."""
        return f"https://{NAME}:{self.port}"


def contexts(wrong: str | None, authority: trustme.CA) -> ssl.SSLContext:
    """The server's side, good or wrong."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    (WRONG[wrong][0] if wrong else _good)(authority, context)
    return context


def say_ok(_: bytes, session: ssl.SSLSocket) -> None:
    """An empty answer."""
    session.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")


def _request(session: ssl.SSLSocket) -> bytes:
    """To its end: closing on what was not read would reset the connection."""
    with session.makefile("rb") as stream:
        head = b""
        while (line := stream.readline()) not in (b"", b"\r\n"):
            head += line
        lengths = [
            int(line.split(b":")[1]) for line in head.splitlines() if line.lower().startswith(b"content-length:")
        ]
        return head + stream.read(sum(lengths))


@contextmanager
def tls_server(
    folder: Path, wrong: str | None = None, answer: Callable[[bytes, ssl.SSLSocket], None] = say_ok
) -> Iterator[TlsServer]:
    """A server for one test; its authority's certificate lies in ``folder`` as authority.pem."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "authority.pem"))
    server = TlsServer(contexts(wrong, authority), answer)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError), server.context.wrap_socket(self.request, server_side=True) as session:
                server.heard.append(_request(session))
                server.answer(server.heard[-1], session)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as tcp:
        tcp.daemon_threads = True
        server.port = int(tcp.server_address[1])
        with serving(tcp):
            yield server
