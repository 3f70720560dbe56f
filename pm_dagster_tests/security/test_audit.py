"""`make audit` names what is known to be vulnerable, and is no green light when it could not ask.

The service is a stand-in on this machine that speaks OSV's API (https://google.github.io/osv.dev/post-v1-querybatch/):
what the real one knows changes overnight.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from pm_dagster_tests.serving import serving

_ROOT = Path(__file__).parents[2]
_ID = "TEST-2026-1"


def _handler(vulnerable: str) -> type[BaseHTTPRequestHandler]:
    known = {"id": _ID, "modified": "2026-01-01T00:00:00Z"}

    class Osv(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            """Which of the packages are vulnerable."""
            queries = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["queries"]
            hit = [{"vulns": [known]} if each["package"]["name"] == vulnerable else {} for each in queries]
            self._answer({"results": hit})

        def do_GET(self) -> None:
            """What one vulnerability is."""
            self._answer({**known, "summary": "made up for a test", "affected": []})

        def _answer(self, value: object) -> None:
            body = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: object) -> None:
            """Say nothing."""

    return Osv


@contextmanager
def _service(vulnerable: str = "") -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(vulnerable)) as server, serving(server):
        yield f"http://127.0.0.1:{server.server_port}"


def _audit(service: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "--assume-old=setup", "audit", f"OSV_URL={service}"]
    return subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False, timeout=300)


def test_nothing_known_is_good() -> None:
    with _service() as url:
        done = _audit(url)
    assert done.returncode == 0, done.stderr


def test_a_vulnerable_package_is_named() -> None:
    with _service(vulnerable="requests") as url:
        done = _audit(url)
    assert done.returncode != 0
    assert "requests" in done.stdout
    assert _ID in done.stdout


def test_a_service_out_of_reach_is_not_good() -> None:
    assert _audit("http://127.0.0.1:1").returncode != 0
