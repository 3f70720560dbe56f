"""The adapter over the official SDK: what it sends, what it makes of the answers."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from databricks.sdk.core import Config

from pm_dagster.config.settings import Settings
from pm_dagster.databricks.runs import SdkRuns
from pm_dagster.dispatch.model import MorePages, RunSnapshot, Standing, read_whole
from pm_dagster.errors import AuthenticationFailed, ForeignAnswer, Refused, Throttled, Unavailable, WorkspaceUnavailable
from pm_dagster_tests.databricks.tiny_server import Asked, Reply, TinyServer, json_reply

BIG = 2**60 + 1
ME = "/api/2.0/preview/scim/v2/Me"


def test_a_new_run_sends_its_token_parameters_and_queueing(server: TinyServer) -> None:
    server.replies(json_reply(run_id=BIG))
    assert server.runs().start(2**53 + 1, {"A": "ä"}, "t" * 64) == BIG
    (asked,) = server.asked
    assert (asked.method, asked.path.rsplit("/", maxsplit=1)[-1]) == ("POST", "run-now")
    assert asked.body == {
        "job_id": 2**53 + 1,
        "idempotency_token": "t" * 64,
        "job_parameters": {"A": "ä"},
        "queue": {"enabled": True},
    }


def test_queueing_can_be_left_to_the_job(server: TinyServer) -> None:
    server.replies(json_reply(run_id=1))
    SdkRuns(server.config(), Settings(queue=False)).start(1, {}, "t")
    assert "queue" not in server.asked[0].body


def test_a_repair_names_the_latest_repair(server: TinyServer) -> None:
    server.replies(json_reply(repair_id=BIG))
    assert server.runs().repair(5, {"A": "b"}, BIG - 2) == BIG
    assert server.asked[0].body == {
        "run_id": 5,
        "latest_repair_id": BIG - 2,
        "rerun_all_failed_tasks": True,
        "job_parameters": {"A": "b"},
    }


def test_a_first_repair_names_none(server: TinyServer) -> None:
    server.replies(json_reply(repair_id=9))
    server.runs().repair(5, {}, None)
    assert "latest_repair_id" not in server.asked[0].body


@pytest.mark.parametrize("value", [None, "12", 0, -1, True, 1.5, [], {}])
def test_an_accepted_call_without_a_usable_id_may_have_taken_effect(server: TinyServer, value: object) -> None:
    server.replies(json_reply(run_id=value, repair_id=value))
    with pytest.raises(WorkspaceUnavailable) as started:
        server.runs().start(1, {}, "t")
    with pytest.raises(WorkspaceUnavailable) as repaired:
        server.runs().repair(1, {}, None)
    assert started.value.maybe_applied
    assert repaired.value.maybe_applied


def test_the_history_is_read_over_all_pages(server: TinyServer) -> None:
    def answer(asked: Asked) -> Reply:
        page = int(asked.query.get("page_token", "0"))
        more: dict[str, Any] = {"next_page_token": str(page + 1)} if page < 2 else {}
        history: list[dict[str, Any]] = [{"type": "ORIGINAL"}] if page == 0 else []
        history += [{"type": "REPAIR", "id": BIG + page * 2 + number} for number in range(2)]
        state = {"life_cycle_state": "INTERNAL_ERROR", "result_state": "FAILED", "state_message": "task failed"}
        return json_reply(run_id=7, job_id=3, state=state, repair_history=history, run_page_url="https://page", **more)

    server.answer = answer
    run = read_whole(server.runs().look_up(7))
    assert len(server.asked) == 3
    assert {asked.query["include_history"] for asked in server.asked} == {"true"}
    assert run.repair_ids == tuple(BIG + number for number in range(6))
    assert run.latest_repair_id == BIG + 5
    assert (run.standing, run.words) == (Standing.REPAIRABLE, "INTERNAL_ERROR/FAILED")
    assert (run.job_id, run.message, run.page_url) == (3, "task failed", "https://page")


def _three_pages(asked: Asked) -> Reply:
    page = int(asked.query.get("page_token", "0"))
    more: dict[str, Any] = {"next_page_token": str(page + 1)} if page < 2 else {}
    state = {"life_cycle_state": "INTERNAL_ERROR", "result_state": "FAILED"}
    run = {"run_id": BIG + page, "job_parameters": [{"name": "A", "value": "x"}]}
    return json_reply(run_id=7, state=state, repair_history=[{"type": "REPAIR", "id": page + 1}], runs=[run], **more)


def test_each_page_is_a_call_of_its_own(server: TinyServer) -> None:
    """Who calls keeps a pace, and asks for the next page when it may."""
    server.answer = _three_pages
    runs = server.runs()
    readings = [runs.look_up(7), runs.find_started(9, datetime(2024, 1, 1, tzinfo=UTC), {"A": "x"})]
    assert len(server.asked) == len(readings)
    server.asked.clear()
    for number in (1, 2):
        readings = [reading.next_page() for reading in readings if isinstance(reading, MorePages)]
        assert [asked.query["page_token"] for asked in server.asked] == [
            str(n + 1) for n in range(number) for _ in "ab"
        ]
    history, found = readings
    assert isinstance(history, RunSnapshot)
    assert history.repair_ids == (1, 2, 3)
    assert found == [BIG, BIG + 1, BIG + 2]


def test_a_page_that_failed_may_be_asked_for_again(server: TinyServer) -> None:
    server.answer = _three_pages
    history = server.runs().look_up(7)
    found = server.runs().find_started(9, datetime(2024, 1, 1, tzinfo=UTC), {"A": "x"})
    assert isinstance(history, MorePages)
    assert isinstance(found, MorePages)
    server.answer = lambda _asked: json_reply(429, error_code="REQUEST_LIMIT_EXCEEDED", message="slow down")
    for next_page in (history.next_page, found.next_page):
        with pytest.raises(Throttled):
            next_page()
    server.answer = _three_pages
    assert read_whole(history.next_page()).repair_ids == (1, 2, 3)
    assert read_whole(found.next_page()) == [BIG, BIG + 1, BIG + 2]


@pytest.mark.parametrize("reply", [Reply(body=""), Reply(body="{}"), json_reply(state={"life_cycle_state": "RUNNING"})])
def test_an_answer_without_a_run_says_nothing_about_it(server: TinyServer, reply: Reply) -> None:
    server.replies(reply)
    with pytest.raises(WorkspaceUnavailable, match="without a usable run_id"):
        read_whole(server.runs().look_up(7))


def test_a_page_that_comes_again_ends_the_reading(server: TinyServer) -> None:
    server.answer = lambda _asked: json_reply(run_id=7, state={"life_cycle_state": "RUNNING"}, next_page_token="a")
    with pytest.raises(WorkspaceUnavailable, match="same page"):
        read_whole(server.runs().look_up(7))
    assert len(server.asked) == 2


def test_an_original_item_with_an_id_is_no_repair(server: TinyServer) -> None:
    state = {"life_cycle_state": "RUNNING"}
    server.replies(json_reply(run_id=7, state=state, repair_history=[{"type": "ORIGINAL", "id": 4}]))
    assert read_whole(server.runs().look_up(7)).repair_ids == ()


@pytest.mark.parametrize(
    "state",
    [
        {"state": {"life_cycle_state": "HIBERNATING"}},
        {"state": {"life_cycle_state": None}},
        {"status": {"state": "DREAMING"}},
    ],
)
def test_a_state_that_nobody_knows_counts_as_active(server: TinyServer, state: dict[str, object]) -> None:
    server.replies(Reply(body=json.dumps({"run_id": 7, **state})))
    assert read_whole(server.runs().look_up(7)).standing is Standing.ACTIVE


@pytest.mark.parametrize(
    "reply",
    [
        json_reply(400, error_code="INVALID_PARAMETER_VALUE", message="Run 7 does not exist."),
        json_reply(400, error_code="INVALID_PARAMETER_VALUE", message="Run: 7 in workspace: 1 doesn't exist."),
        json_reply(400, error_code="RESOURCE_DOES_NOT_EXIST", message="m"),
        json_reply(404, error_code="NOT_FOUND", message="Run 7 does not exist."),
        json_reply(404, message="Run 7 does not exist."),
    ],
)
def test_a_run_that_is_gone_is_known_by_any_wording(server: TinyServer, reply: Reply) -> None:
    server.replies(reply)
    with pytest.raises(Refused) as caught:
        read_whole(server.runs().look_up(7))
    assert caught.value.gone


def test_another_refusal_does_not_mean_gone(server: TinyServer) -> None:
    server.replies(json_reply(400, error_code="INVALID_PARAMETER_VALUE", message="run_id is malformed"))
    with pytest.raises(Refused) as caught:
        read_whole(server.runs().look_up(7))
    assert not caught.value.gone


@pytest.mark.parametrize(
    "reply",
    [
        Reply(404, "<html><body>404 Not Found</body></html>"),
        Reply(404, ""),
        Reply(404, "Run 7 does not exist."),
        Reply(404, '["Run 7 does not exist."]'),
        json_reply(404, error_code="ENDPOINT_NOT_FOUND", message="No API found for 'GET /jobs/runs/get'"),
        json_reply(404, error_code="NOT_FOUND", message="Bad Target: /api/2.2/jobs/runs/get"),
        json_reply(404, error="Bad Target: /api/2.2/jobs/runs/get"),
        json_reply(404, error_code="RESOURCE_DOES_NOT_EXIST", message="Workspace 7 does not exist."),
        json_reply(404, error_code=404, message="not found"),
        json_reply(410, message="gone"),
    ],
)
def test_an_answer_that_is_not_the_jobs_apis_never_means_gone(server: TinyServer, reply: Reply) -> None:
    """A run that is taken for gone is started a second time beside the first."""
    server.replies(reply)
    with pytest.raises(ForeignAnswer, match="no answer of the Jobs API at http"):
        read_whole(server.runs().look_up(7))


@pytest.mark.parametrize("message", ["Run 77 does not exist.", "Job 7 does not exist.", "Cluster 7 does not exist."])
def test_the_absence_of_something_else_does_not_mean_gone(server: TinyServer, message: str) -> None:
    for code in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"):
        server.replies(json_reply(400, error_code=code, message=message))
        with pytest.raises(Refused) as caught:
            read_whole(server.runs().look_up(7))
        assert not caught.value.gone


@pytest.mark.parametrize("body", ['{"state": "RUNNING"}', '{"repair_history": "none"}', '{"repair_history": [1]}'])
def test_a_garbled_answer_is_no_usable_answer(server: TinyServer, body: str) -> None:
    server.replies(Reply(200, body))
    with pytest.raises(WorkspaceUnavailable):
        read_whole(server.runs().look_up(7))


def test_a_403_for_one_job_is_a_refusal(server: TinyServer) -> None:
    denied = json_reply(403, error_code="PERMISSION_DENIED", message="not your job")
    server.answer = lambda asked: json_reply(userName="me") if asked.path == ME else denied
    with pytest.raises(Refused, match="not your job"):
        server.runs().start(1, {}, "t")


@pytest.mark.parametrize("status", [401, 403])
def test_a_403_for_everything_is_about_our_credentials(server: TinyServer, status: int) -> None:
    server.answer = lambda asked: json_reply(status if asked.path == ME else 403, message="Invalid access token")
    with pytest.raises(AuthenticationFailed):
        server.runs().start(1, {}, "t")


@pytest.mark.parametrize("me", [404, 429, 500])
@pytest.mark.parametrize(
    ("jobs", "expected"),
    [(200, Refused), (401, AuthenticationFailed), (403, AuthenticationFailed), (429, Unavailable), (500, Unavailable)],
)
def test_a_403_is_asked_about_twice_where_the_first_question_has_no_answer(
    server: TinyServer, me: int, jobs: int, expected: type[Exception]
) -> None:
    """What is wrong with all of us must refuse no row, and what is wrong with one row must not stop the others."""
    statuses = {ME: me, "/api/2.1/jobs/list": jobs}
    code = "PERMISSION_DENIED"
    server.answer = lambda asked: json_reply(statuses.get(asked.path, 403), error_code=code, message="no")
    with pytest.raises(expected) as caught:
        server.runs().start(1, {}, "t")
    assert not getattr(caught.value, "maybe_applied", False)


def test_a_lost_run_is_found_by_its_parameters(server: TinyServer) -> None:
    def run(number: int, **parameters: str) -> dict[str, object]:
        return {"run_id": number, "job_parameters": [{"name": n, "value": v} for n, v in parameters.items()]}

    server.replies(json_reply(runs=[run(1, A="other"), run(BIG, A="x", MORE="y"), run(3)]))
    since = datetime(2024, 1, 1, tzinfo=UTC)
    assert read_whole(server.runs().find_started(9, since, {"A": "x"})) == [BIG]
    assert server.asked[0].query["job_id"] == "9"
    assert int(server.asked[0].query["start_time_from"]) == int(since.timestamp() * 1000) - 60_000
    assert read_whole(server.runs().find_started(9, since, {"A": "z"})) == []


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        (
            "https://adb-984752964297111.11.azuredatabricks.net",
            "https://adb-984752964297111.11.azuredatabricks.net/jobs/1/runs/2?o=984752964297111",
        ),
        ("https://dbc-1234.cloud.databricks.com", "https://dbc-1234.cloud.databricks.com/jobs/1/runs/2"),
        ("http://127.0.0.1:80/", "http://127.0.0.1:80/jobs/1/runs/2"),
    ],
)
def test_the_page_of_a_run_is_linked_without_a_call(host: str, expected: str) -> None:
    runs = SdkRuns(Config(host=host, token="t0ken"), Settings())
    assert runs.page_url(1, 2) == expected


def test_who_we_are_and_what_a_job_is_called(server: TinyServer) -> None:
    server.answer = lambda asked: (
        json_reply(userName="me@example.com") if asked.path == ME else json_reply(settings={"name": "ingest"})
    )
    assert server.runs().check() == "me@example.com"
    assert server.runs().job_name(1) == "ingest"
