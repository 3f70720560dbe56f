"""The part of the internet that the tests need: real host names over TLS, on loopback.

Clients reach it as they would any proxy: HTTPS_PROXY names it, and they trust its authority. It takes CONNECT, answers
the TLS handshake in the name of the host, and hands each request to that host's site. Put here: sockets, TLS, HTTP.
Keep out: what the sites answer.
"""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import trustme

from pm_dagster_tests.serving import serving


@dataclass(frozen=True)
class Asked:
    """One request as it came to a site."""

    host: str
    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def path(self) -> str:
        """Without the query."""
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, str]:
        """One value for each name."""
        return {name: values[0] for name, values in parse_qs(urlsplit(self.target).query).items()}

    @property
    def form(self) -> dict[str, str]:
        """The fields of a form that was posted."""
        return {name: values[0] for name, values in parse_qs(self.body.decode()).items()}

    @property
    def bearer(self) -> str:
        """The bearer token."""
        scheme, _, token = self.headers.get("authorization", "").partition(" ")
        return token if scheme.lower() == "bearer" else ""


@dataclass(frozen=True)
class Reply:
    """What a site answers."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


def json_reply(body: object, status: int = 200, **headers: str) -> Reply:
    """A JSON answer; an underscore in a header's name stands for a hyphen."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, json.dumps(body).encode(), {"Content-Type": "application/json", **named})


Site = Callable[[Asked], Reply]


class Internet:
    """Hosts and their sites; ``asked`` holds the requests in order."""

    def __init__(self, authority: Path) -> None:
        self._ca = trustme.CA()
        self.authority = authority
        self._ca.cert_pem.write_to_path(str(authority))
        self._contexts: dict[str, ssl.SSLContext] = {}
        self._lock = threading.Lock()
        self.sites: dict[str, Site] = {}
        self.asked: list[Asked] = []
        self.proxy = ""

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which a process gets here."""
        return {
            "HTTPS_PROXY": self.proxy,
            "NO_PROXY": "127.0.0.1,localhost",
            "REQUESTS_CA_BUNDLE": str(self.authority),
            "SSL_CERT_FILE": str(self.authority),
        }

    def context(self, host: str) -> ssl.SSLContext:
        """The server's side of TLS in the name of a host."""
        with self._lock:
            if host not in self._contexts:
                self._contexts[host] = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                self._ca.issue_cert(host).configure_cert(self._contexts[host])
            return self._contexts[host]

    def present(self, host: str, as_: str) -> None:
        """Answer for a host with the certificate of another."""
        self._contexts[host] = self.context(as_)

    def answer(self, asked: Asked) -> Reply:
        """Let the host's site answer."""
        self.asked.append(asked)
        return self.sites[asked.host](asked)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    internet: Internet

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 the name is the base class's
        """Say nothing."""


class _Proxy(_Handler):
    def do_CONNECT(self) -> None:
        host = self.path.partition(":")[0]
        self.close_connection = True
        if host not in self.internet.sites:
            self.send_error(502, "no such host")
            return
        self.send_response(200)
        self.end_headers()
        inside = type("Inside", (_Inside,), {"internet": self.internet, "host": host})
        try:
            with self.internet.context(host).wrap_socket(self.connection, server_side=True) as tls:
                inside(tls, self.client_address, self.server)
        except (OSError, ssl.SSLError):
            # The client did not like the certificate, or went away.
            return


class _Inside(_Handler):
    host = ""

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        reply = self.internet.answer(Asked(self.host, self.command, self.path, headers, body))
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        self.wfile.write(reply.body)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815 the names are the base class's


class PlainSite(_Inside):
    """A site without TLS on a port of its own, such as the endpoint of managed identities."""


@contextmanager
def listening(handler: type[BaseHTTPRequestHandler], **attributes: Any) -> Iterator[int]:  # noqa: ANN401 of the handler
    """Serve on a free port of 127.0.0.1; gives the port."""
    own = type("Own", (handler,), attributes)
    with ThreadingHTTPServer(("127.0.0.1", 0), own) as server:
        server.daemon_threads = True
        with serving(server):
            yield int(server.server_address[1])


@contextmanager
def internet(folder: Path) -> Iterator[Internet]:
    """An internet for one test; the authority's certificate lies in ``folder``."""
    net = Internet(folder / "authority.pem")
    with listening(_Proxy, internet=net) as port:
        net.proxy = f"http://127.0.0.1:{port}"
        yield net
