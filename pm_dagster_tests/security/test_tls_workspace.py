"""The workspace's TLS: what must be refused is, nothing was sent, and the message says what to do."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import pytest
from databricks.sdk.core import Config

from pm_dagster.config.settings import Settings
from pm_dagster.databricks.sign_in import signed_in
from pm_dagster.databricks.transport import OneAttempt
from pm_dagster.errors import ConfigurationError, ProcessManagerError, WorkspaceUnavailable
from pm_dagster_tests.security.tls_site import NAME, WRONG, tls_server

TOKEN = "an-ordinary-looking-word"


@pytest.fixture(autouse=True)
def trusting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "authority.pem"))


def _post(url: str) -> dict[str, object]:
    return OneAttempt(Config(host=url, token=TOKEN), 5.0).do("POST", "/api/2.1/jobs/run-now", body={"job_id": 1})


def test_a_good_certificate_will_do(tmp_path: Path) -> None:
    with tls_server(tmp_path) as server:
        assert _post(server.url) == {}
    assert TOKEN.encode() in server.heard[0]


@pytest.mark.parametrize("wrong", WRONG)
def test_a_call(tmp_path: Path, wrong: str) -> None:
    with tls_server(tmp_path, wrong) as server, pytest.raises(ProcessManagerError, match=WRONG[wrong][1]) as caught:
        _post(server.url)
    assert server.heard == []
    assert "TLS" in str(caught.value)
    assert NAME in str(caught.value)
    assert not getattr(caught.value, "maybe_applied", False)
    if "certificate" in wrong or "authority" in wrong:
        assert isinstance(caught.value, ConfigurationError), "trying again does not help"
        assert "REQUESTS_CA_BUNDLE" in str(caught.value)


@pytest.mark.parametrize("wrong", WRONG)
def test_signing_in_by_a_client_secret(tmp_path: Path, wrong: str) -> None:
    environment = {"DATABRICKS_CLIENT_ID": "an-id", "DATABRICKS_CLIENT_SECRET": TOKEN}
    with tls_server(tmp_path, wrong) as server, pytest.raises(ProcessManagerError, match=WRONG[wrong][1]) as caught:
        signed_in({**environment, "DATABRICKS_HOST": server.url}, Settings(http_timeout_seconds=5))
    assert server.heard == []
    assert "TLS" in str(caught.value)
    assert NAME in str(caught.value)


def _break_tls(_: bytes, session: ssl.SSLSocket) -> None:
    """The request was read; then something in the middle answers without TLS."""
    with socket.socket(fileno=session.detach()) as plain:
        plain.sendall(b"HTTP/1.1 503 Service Unavailable\r\n\r\n")


def test_tls_that_breaks_after_the_request_may_have_taken_effect(tmp_path: Path) -> None:
    with tls_server(tmp_path, answer=_break_tls) as server, pytest.raises(WorkspaceUnavailable) as caught:
        _post(server.url)
    assert b"run-now" in server.heard[0]
    assert caught.value.maybe_applied
