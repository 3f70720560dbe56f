"""Signing in by a client secret: an endpoint that is down is no wrong secret, and the secret goes nowhere else."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pm_dagster.config.settings import Settings
from pm_dagster.databricks.sign_in import signed_in
from pm_dagster.databricks.transport import OneAttempt
from pm_dagster.errors import (
    AuthenticationFailed,
    ConfigurationError,
    ProcessManagerError,
    Unavailable,
    WorkspaceUnavailable,
)
from pm_dagster.net.token_endpoint import TokenEndpoint
from pm_dagster_tests.databricks.tiny_server import Asked, Reply, TinyServer, json_reply, tiny_server

SECRET = "quite+an/ordinary=word"
_DISCOVERY = "/oidc/.well-known/oauth-authorization-server"


@pytest.fixture
def server() -> Iterator[TinyServer]:
    with tiny_server() as running:
        yield running


def _workspace(server: TinyServer, token_reply: Reply, endpoint: str | None = None) -> None:
    def answer(asked: Asked) -> Reply:
        if asked.path == _DISCOVERY:
            return json_reply(token_endpoint=endpoint or f"{server.host}/token")
        return token_reply if asked.path == "/token" else json_reply(userName="we")

    server.answer = answer


def _call(server: TinyServer, timeout: float = 5.0) -> dict[str, object]:
    environment = {"DATABRICKS_HOST": server.host, "DATABRICKS_CLIENT_ID": "id", "DATABRICKS_CLIENT_SECRET": SECRET}
    config = signed_in(environment, Settings(http_timeout_seconds=timeout))
    return OneAttempt(config, timeout).do("POST", "/api/2.1/jobs/run-now")


def _token(seconds: object = 3600) -> Reply:
    return json_reply(access_token="the-token", token_type="Bearer", expires_in=seconds)


def _asked_for_token(server: TinyServer) -> int:
    return sum(asked.path == "/token" for asked in server.asked)


def test_a_token_is_asked_for_and_sent(server: TinyServer) -> None:
    _workspace(server, _token())
    _call(server)
    by_path = {asked.path: asked.headers["Authorization"] for asked in server.asked if "Authorization" in asked.headers}
    assert by_path["/api/2.1/jobs/run-now"] == "Bearer the-token"
    assert base64.b64decode(by_path["/token"].removeprefix("Basic ")).decode() == f"id:{SECRET}"


@pytest.mark.parametrize(
    "reply",
    [
        json_reply(503, error="temporarily_unavailable"),
        Reply(502, "<html>Bad Gateway</html>", {"Content-Type": "text/html"}),
        Reply(500, ""),
        json_reply(429, error="slow_down"),
        Reply(302, "", {"Location": "/login"}),
        Reply(200, "<html>Sign in</html>", {"Content-Type": "text/html"}),
        Reply(200, "{}"),
        Reply(behaviour="hang"),
        Reply(behaviour="reset"),
        Reply(behaviour="truncate"),
    ],
    ids=lambda reply: f"{reply.status} {reply.behaviour} {reply.body[:6]}",
)
def test_an_endpoint_that_is_down_is_unavailable(server: TinyServer, reply: Reply) -> None:
    _workspace(server, reply)
    with pytest.raises(WorkspaceUnavailable) as caught:
        _call(server, timeout=0.3)
    assert not caught.value.maybe_applied
    assert not [asked for asked in server.asked if asked.path.endswith("run-now")]
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("status", [400, 401, 403])
def test_a_refused_secret_stops_the_dispatch_and_is_not_shown(server: TinyServer, status: int) -> None:
    text = f"the secret {SECRET}\nis wrong"
    _workspace(server, json_reply(status, error="invalid_client", error_description=text))
    with pytest.raises(AuthenticationFailed, match="invalid_client") as caught:
        _call(server)
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_the_secret_follows_no_redirect(server: TinyServer, status: int) -> None:
    with tiny_server() as elsewhere:
        elsewhere.replies(_token())
        _workspace(server, Reply(status, "", {"Location": f"{elsewhere.host}/token"}))
        with pytest.raises(Unavailable):
            _call(server)
        assert elsewhere.asked == []


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://login.example.com/token",
        "http://127.0.0.1.example.com/token",
        "ftp://127.0.0.1.evil/token",
        "/token",
        "",
    ],
)
def test_the_secret_goes_to_no_endpoint_without_tls(endpoint: str) -> None:
    with pytest.raises(ConfigurationError, match="PM_ALLOW_HTTP"):
        TokenEndpoint(endpoint, 1.0, allow_http=False)


@pytest.mark.parametrize("reply", [Reply(404, "no"), json_reply(issuer="x"), Reply(200, "<html>")])
def test_a_host_without_an_endpoint_is_named(server: TinyServer, reply: Reply) -> None:
    server.replies(reply)
    with pytest.raises(ConfigurationError, match="has no OAuth token endpoint"):
        _call(server)


def test_sixteen_calls_that_begin_at_once_ask_for_one_token(server: TinyServer) -> None:
    _workspace(server, _token())
    tokens = TokenEndpoint(f"{server.host}/token", 5.0, allow_http=False).tokens({})
    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(lambda _: tokens.get(), range(16))) == {"the-token"}
    assert _asked_for_token(server) == 1


@pytest.mark.parametrize("seconds", [0, "0", None, "soon", -5])
def test_a_token_without_a_life_serves_one_call(server: TinyServer, seconds: object) -> None:
    _workspace(server, _token(seconds))
    tokens = TokenEndpoint(f"{server.host}/token", 5.0, allow_http=False).tokens({})
    assert [tokens.get(), tokens.get()] == ["the-token", "the-token"]
    assert _asked_for_token(server) == 2


def test_a_profile_gets_the_same_bounds(server: TinyServer, tmp_path: Path) -> None:
    """The SDK reads it; what it holds is still ours to ask with."""
    _workspace(server, Reply(behaviour="hang"))
    profiles = tmp_path / "profiles"
    profiles.write_text(f"[team]\nhost = {server.host}\nclient_id = id\nclient_secret = {SECRET}\n")
    environment = {"DATABRICKS_CONFIG_PROFILE": "team", "DATABRICKS_CONFIG_FILE": str(profiles)}
    config = signed_in(environment, Settings(http_timeout_seconds=0.3))
    with pytest.raises(ProcessManagerError) as caught:
        OneAttempt(config, 0.3).do("POST", "/x")
    assert isinstance(caught.value, WorkspaceUnavailable)


def test_what_stays_on_this_machine_goes_to_no_proxy(server: TinyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its token would be readable on the way to a proxy elsewhere."""
    with tiny_server() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.host)
        monkeypatch.setenv("ALL_PROXY", proxy.host)
        _workspace(server, _token())
        _call(server)
        assert proxy.asked == []
