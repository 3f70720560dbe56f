"""What one HTTP attempt means: every failure has one name, and none is repeated."""

from __future__ import annotations

import logging
import socket
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from databricks.sdk.core import Config
from databricks.sdk.credentials_provider import CredentialsStrategy

from pm_dagster.config.masking import register_secret
from pm_dagster.databricks.transport import OneAttempt
from pm_dagster.errors import (
    AuthenticationFailed,
    ForeignAnswer,
    Kind,
    NotAdmitted,
    ProcessManagerError,
    Refused,
    Throttled,
    WorkspaceUnavailable,
)
from pm_dagster_tests.databricks.tiny_server import TOKEN, Reply, TinyServer, json_reply

HTML = "<html><body>Sign in</body></html>"


def failure(server: TinyServer, timeout: float = 30.0) -> ProcessManagerError:
    """What a POST to the server raises; it must have been made exactly once."""
    with pytest.raises(ProcessManagerError) as caught:
        server.attempt(timeout).do("POST", "/api/2.1/jobs/run-now", body={"job_id": 1})
    assert len(server.asked) == 1, "one attempt, no hidden repetition"
    return caught.value


def test_an_answer_is_its_json(server: TinyServer) -> None:
    server.replies(json_reply(run_id=2**60 + 1))
    assert server.attempt().do("POST", "/x", body={"a": 1}) == {"run_id": 2**60 + 1}
    assert server.asked[0].body == {"a": 1}
    assert server.asked[0].headers["Authorization"] == f"Bearer {TOKEN}"


def test_an_empty_answer_is_an_empty_object(server: TinyServer) -> None:
    server.replies(Reply(200, ""))
    assert server.attempt().do("POST", "/x") == {}


def test_booleans_go_over_as_the_api_reads_them(server: TinyServer) -> None:
    server.attempt().do("GET", "/x", query={"include_history": True, "run_id": 7})
    assert server.asked[0].query == {"include_history": "true", "run_id": "7"}


def test_a_refused_connection_certainly_did_nothing() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody else gets the port, and nobody answers on it
        config = Config(host=f"http://127.0.0.1:{taken.getsockname()[1]}", token=TOKEN)
        with pytest.raises(WorkspaceUnavailable, match="cannot connect") as caught:
            OneAttempt(config, 5.0).do("POST", "/x")
    assert not caught.value.maybe_applied


def test_a_name_that_does_not_resolve_certainly_did_nothing() -> None:
    with pytest.raises(WorkspaceUnavailable, match="cannot connect") as caught:
        OneAttempt(Config(host="https://no-such-host.invalid", token=TOKEN), 5.0).do("POST", "/x")
    assert not caught.value.maybe_applied


def test_a_server_that_speaks_no_tls_certainly_did_nothing(server: TinyServer) -> None:
    config = Config(host=server.host.replace("http:", "https:"), token=TOKEN)
    with pytest.raises(WorkspaceUnavailable) as caught:
        OneAttempt(config, 5.0).do("POST", "/x")
    assert not caught.value.maybe_applied


@pytest.mark.parametrize("behaviour", ["reset", "close", "truncate"])
def test_a_broken_answer_may_have_taken_effect(server: TinyServer, behaviour: str) -> None:
    server.replies(Reply(200, '{"run_id": 1}', behaviour=behaviour))
    error = failure(server)
    assert isinstance(error, WorkspaceUnavailable)
    assert error.maybe_applied


def test_a_timeout_may_have_taken_effect(server: TinyServer) -> None:
    server.replies(Reply(behaviour="hang"))
    error = failure(server, timeout=0.2)
    assert isinstance(error, WorkspaceUnavailable)
    assert error.maybe_applied
    assert "did not answer within 0.2 s" in str(error)


@pytest.mark.parametrize("body", [HTML, "", '{"error_code": "TEMPORARILY_UNAVAILABLE", "message": "m"}', "[1]", "null"])
@pytest.mark.parametrize("status", [500, 502, 503, 504, 408, 302, 307])
def test_a_server_error_may_have_taken_effect(server: TinyServer, status: int, body: str) -> None:
    server.replies(Reply(status, body, {"Location": "/elsewhere", "Retry-After": "3600"}))
    error = failure(server)
    assert isinstance(error, WorkspaceUnavailable)
    assert (error.maybe_applied, error.status) == (True, status)
    assert f"HTTP {status}" in str(error)


@pytest.mark.parametrize("body", [HTML, "[1]", "null", '"word"', '{"run_id": 1', "\x00", '{"a":' * 100_000])
def test_an_answer_that_is_no_json_object_may_have_taken_effect(server: TinyServer, body: str) -> None:
    server.replies(Reply(200, body))
    error = failure(server)
    assert isinstance(error, WorkspaceUnavailable)
    assert error.maybe_applied


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "0.5"}, 0.5),
        ({"Retry-After": "86400"}, 86400.0),
        ({"Retry-After": "-5"}, 0.0),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "inf"}, None),
        ({"Retry-After": "1e400"}, None),
        ({"Retry-After": "Wed, 99 Foo 2020 00:00:00 GMT"}, None),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
    ],
)
def test_a_429_says_how_long_and_returns_at_once(
    server: TinyServer, headers: Mapping[str, str], expected: float | None
) -> None:
    server.replies(json_reply(429, headers, error_code="REQUEST_LIMIT_EXCEEDED", message="slow down"))
    error = failure(server)
    assert isinstance(error, Throttled)
    assert error.retry_after == expected


def test_a_429_may_give_a_date(server: TinyServer) -> None:
    moment = datetime.now(UTC) + timedelta(hours=2)
    server.replies(json_reply(429, {"Retry-After": format_datetime(moment, usegmt=True)}))
    error = failure(server)
    assert isinstance(error, Throttled)
    assert error.retry_after is not None
    assert 3600 < error.retry_after <= 7200


def test_a_401_is_about_our_credentials(server: TinyServer) -> None:
    server.replies(Reply(401, HTML))
    error = failure(server)
    assert isinstance(error, AuthenticationFailed)
    assert error.status == 401


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "INVALID_PARAMETER_VALUE"),
        (400, "RESOURCE_DOES_NOT_EXIST"),
        (404, "ANYTHING"),
        (409, "RESOURCE_CONFLICT"),
        (403, "PERMISSION_DENIED"),
    ],
)
def test_a_4xx_of_the_jobs_api_is_a_definite_no(server: TinyServer, status: int, code: str) -> None:
    server.replies(json_reply(status, error_code=code, message="because"))
    error = failure(server)
    assert isinstance(error, Refused)
    assert (error.status, error.error_code, error.gone) == (status, code, False)
    assert "because" in str(error)


@pytest.mark.parametrize("body", [HTML, "", "Bad Request", '{"message": "no"}', '{"error_code": 400, "message": "no"}'])
@pytest.mark.parametrize("status", [400, 402, 403, 404, 405, 406, 407, 410, 411, 413, 414, 415, 421, 431, 451])
def test_a_4xx_that_the_jobs_api_does_not_give_is_no_answer(server: TinyServer, status: int, body: str) -> None:
    server.replies(Reply(status, body))
    error = failure(server)
    assert isinstance(error, ForeignAnswer)
    assert (error.maybe_applied, error.status) == (True, status)
    assert f"HTTP {status}" in str(error)
    assert server.host in str(error)


def test_a_redirect_is_told_with_where_it_leads_but_not_with_what_it_carries(server: TinyServer) -> None:
    server.replies(Reply(303, "", {"Location": f"https://accounts.example/login?next={TOKEN}"}))
    error = failure(server)
    assert isinstance(error, ForeignAnswer)
    assert "https://accounts.example (login)" in str(error)
    assert TOKEN not in str(error)


@pytest.mark.parametrize(
    "reply",
    [
        Reply(400, "Invalid Token"),
        Reply(400, "Error 400 Invalid Token\n\nHTTP ERROR 400"),
        Reply(403, "<html><h2>HTTP ERROR 403</h2><pre>    Invalid access token.</pre></html>"),
        Reply(403, "io.jsonwebtoken.ExpiredJwtException: JWT expired at 2024-01-01T00:00:00Z"),
        json_reply(400, error_code="INVALID_TOKEN", message="of another workspace"),
        json_reply(403, error_code="403", message="Invalid access token."),
        json_reply(403, error_code=403, message="Unauthorized access to Org: 6051921418418893"),
        json_reply(400, error_code="INVALID_PARAMETER_VALUE", message="Invalid Token"),
    ],
)
def test_a_token_that_is_not_accepted_is_about_our_credentials_in_any_status(server: TinyServer, reply: Reply) -> None:
    server.replies(reply)
    error = failure(server)
    assert isinstance(error, AuthenticationFailed)
    assert "another workspace or tenant" in str(error)


@pytest.mark.parametrize(
    "reply",
    [
        json_reply(
            403, error_code=403, message="Source IP address: 1.2.3.4 is blocked by Databricks IP ACL for workspace: 5"
        ),
        json_reply(403, error_code="PERMISSION_DENIED", message="Unauthorized network access to workspace: 5"),
        Reply(403, "Public access is not allowed for workspace: 5"),
        Reply(302, "", {"Location": "/login.html?error=private-link-validation-error:5"}),
    ],
)
def test_a_network_that_is_not_let_in_is_about_the_way(server: TinyServer, reply: Reply) -> None:
    server.replies(reply)
    assert isinstance(failure(server), NotAdmitted)


def test_a_long_message_is_cut_and_made_one_line(server: TinyServer) -> None:
    server.replies(json_reply(400, error_code="BAD", message="a\nb" * 10_000))
    text = str(failure(server))
    assert len(text) < 700
    assert "\n" not in text


@pytest.mark.parametrize("message", [None, 5, ["a"], {"b": 1}])
def test_a_message_of_another_form_is_no_failure_of_ours(server: TinyServer, message: object) -> None:
    server.replies(json_reply(400, error_code="BAD_REQUEST", message=message))
    assert isinstance(failure(server), Refused)
    server.asked.clear()
    server.replies(json_reply(400, error_code=message, message=message))
    assert isinstance(failure(server), ForeignAnswer)


@pytest.mark.parametrize("status", [200, 400, 401, 403, 429, 500, 503])
def test_the_token_is_nowhere_in_what_is_raised(server: TinyServer, status: int) -> None:
    """A plain-text answer that echoes the request's Authorization header."""
    server.answer = lambda asked: Reply(status, f"bad request: {asked.headers['Authorization']} / {TOKEN[:-1]}{TOKEN}")
    error = failure(server)
    told = [str(error), repr(error), repr(error.args), "".join(traceback.format_exception(error))]
    assert [text for text in told if TOKEN in text] == []


def test_a_token_that_was_issued_to_us_is_masked_too(server: TinyServer) -> None:
    """It is in no attribute of the configuration."""

    class Issued(CredentialsStrategy):
        def auth_type(self) -> str:
            return "issued"

        def __call__(self, cfg: Config) -> Callable[[], dict[str, str]]:  # noqa: ARG002 the SDK's signature
            return lambda: {"Authorization": f"Bearer {TOKEN}", "X-Management-Token": TOKEN[::-1]}

    server.answer = lambda asked: Reply(500, f"{asked.headers['Authorization'].split()[1]} {TOKEN[::-1]}")
    config = Config(host=server.host, credentials_strategy=Issued())
    with pytest.raises(WorkspaceUnavailable) as caught:
        OneAttempt(config, 5.0).do("GET", "/x")
    assert TOKEN not in str(caught.value)
    assert TOKEN[::-1] not in str(caught.value)


@pytest.mark.parametrize("password", ["workspace", "exist", "INVALID_PARAMETER_VALUE"])
def test_a_password_of_plain_words_hides_nothing_from_the_rules_and_shows_nowhere(
    server: TinyServer, password: str
) -> None:
    register_secret(password)
    text = "Run: 5 in workspace: 77 doesn't exist."
    server.replies(json_reply(400, error_code="INVALID_PARAMETER_VALUE", message=text))
    with pytest.raises(Refused) as caught:
        server.attempt().do("GET", "/api/2.2/jobs/runs/get", query={"run_id": 5})
    assert (caught.value.gone, caught.value.kind) == (True, Kind.GONE)
    assert password not in f"{caught.value} {vars(caught.value)} {caught.value.args}"


def test_a_password_of_plain_words_does_not_hide_that_a_job_is_absent(server: TinyServer) -> None:
    register_secret("does not exist")
    server.replies(json_reply(400, error_code="INVALID_PARAMETER_VALUE", message="Job 1 does not exist."))
    refused = failure(server)
    assert isinstance(refused, Refused)
    assert (refused.job_absent, refused.kind) == (True, Kind.NAMED)
    assert "does not exist" not in f"{refused} {vars(refused)}"


@pytest.mark.parametrize("behaviour", ["reset", "close", "truncate"])
def test_the_token_is_nowhere_in_a_broken_connections_error(server: TinyServer, behaviour: str) -> None:
    server.replies(Reply(behaviour=behaviour))
    assert TOKEN not in "".join(traceback.format_exception(failure(server)))


def test_a_token_at_the_cut_of_a_long_message_does_not_show_in_part(server: TinyServer) -> None:
    """Cutting before scrubbing would leave the beginning of the token, which no longer matches."""
    for room in (5, 10, 20, 25):
        server.asked.clear()
        server.replies(json_reply(400, message="x" * (500 - room) + TOKEN))
        assert TOKEN[:5] not in str(failure(server))


def test_each_attempt_is_logged_without_headers_query_and_body(
    server: TinyServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.replies(json_reply(run_id=1), Reply(429, "slow down", {"Retry-After": "7"}))
    with caplog.at_level(logging.DEBUG, "pm_dagster"):
        server.attempt().do("GET", "/x", query={"q": "of-the-query"}, body={"a": "of-the-body"})
        with pytest.raises(Throttled):
            server.attempt().do("POST", "/y")
    found = [(record.levelname, record.getMessage(), record.__dict__["fields"]) for record in caplog.records]
    assert [given.pop("seconds") >= 0 for _, event, given in found if event == "request"] == [True, True]
    assert found == [
        ("DEBUG", "request", {"call": "GET /x", "status": 200}),
        ("DEBUG", "request", {"call": "POST /y", "status": 429}),
        ("INFO", "throttled", {"call": "/y", "pause": 7.0}),
    ]


def test_an_attempt_without_an_answer_is_logged_as_well(server: TinyServer, caplog: pytest.LogCaptureFixture) -> None:
    server.replies(Reply(behaviour="reset"))
    with caplog.at_level(logging.DEBUG, "pm_dagster.databricks.transport"):
        failure(server)
    assert [record.__dict__["fields"]["status"] for record in caplog.records] == [None]
