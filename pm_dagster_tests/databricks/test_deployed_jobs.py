"""The adapter for the deployed cluster job: what it sends, what it makes of the answers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pm_dagster.config.settings import Settings
from pm_dagster.databricks.deployed_jobs import SdkDeployedJobs
from pm_dagster.errors import AuthenticationFailed, ProcessManagerError, Refused, WorkspaceUnavailable
from pm_dagster.launcher.deployed_job import DeployedJob, End
from pm_dagster_tests.databricks.tiny_server import TOKEN, Asked, Reply, TinyServer, json_reply

BIG = 2**60 + 1
ME = "/api/2.0/preview/scim/v2/Me"


def jobs(server: TinyServer) -> SdkDeployedJobs:
    return SdkDeployedJobs(server.config(), Settings(http_timeout_seconds=30.0))


def run(**more: Any) -> Reply:  # noqa: ANN401
    return Reply(body=json.dumps({"run_id": 7, "job_id": 3, **more}))


def test_a_run_is_started_with_the_token_and_nothing_else(server: TinyServer) -> None:
    server.replies(json_reply(run_id=BIG))
    assert jobs(server).start(2**53 + 1, "t" * 64) == BIG
    (asked,) = server.asked
    assert (asked.method, asked.path.rsplit("/", maxsplit=1)[-1]) == ("POST", "run-now")
    assert asked.body == {"job_id": 2**53 + 1, "idempotency_token": "t" * 64}


@pytest.mark.parametrize("value", [None, "12", 0, True, 1.5])
def test_a_start_without_a_usable_id_may_have_taken_effect(server: TinyServer, value: object) -> None:
    server.replies(json_reply(run_id=value))
    with pytest.raises(WorkspaceUnavailable) as caught:
        jobs(server).start(1, "t")
    assert caught.value.maybe_applied


def test_jobs_are_asked_for_by_name_page_by_page(server: TinyServer) -> None:
    first = {"job_id": BIG, "creator_user_name": "ann", "settings": {"name": "a & b"}}
    server.replies(json_reply(jobs=[first], next_page_token="2"), json_reply(jobs=[{"job_id": 5}]))
    assert jobs(server).find_jobs("a & b") == [DeployedJob(BIG, "a & b", "ann"), DeployedJob(5, "", "")]
    assert [asked.query for asked in server.asked] == [
        {"name": "a & b", "limit": "100"},
        {"name": "a & b", "limit": "100", "page_token": "2"},
    ]


def test_an_empty_list_may_have_no_jobs_at_all(server: TinyServer) -> None:
    server.replies(json_reply())
    assert jobs(server).find_jobs("x") == []


def test_the_tasks_are_read_over_all_pages(server: TinyServer) -> None:
    def answer(asked: Asked) -> Reply:
        page = int(asked.query.get("page_token", "0"))
        more: dict[str, Any] = {"next_page_token": str(page + 1)} if page < 2 else {}
        state = {"life_cycle_state": "TERMINATED", "result_state": "SUCCESS"}
        task = {"task_key": f"t{page}", "run_id": BIG + page, "state": state, "start_time": 1000, "end_time": 2500}
        return run(tasks=[task], state=state, start_time=500, end_time=2600, **more)

    server.answer = answer
    seen = jobs(server).look_up(7)
    assert len(server.asked) == 3
    assert [(task.task_key, task.state.run_id, task.seconds) for task in seen.tasks] == [
        (f"t{page}", BIG + page, 1.5) for page in range(3)
    ]
    assert (seen.state.run_id, seen.state.job_id, seen.seconds, seen.end) == (7, 3, 2.1, End.SUCCEEDED)


@pytest.mark.parametrize(
    ("answer", "end"),
    [
        ({}, None),
        ({"state": {"life_cycle_state": "HIBERNATING"}}, None),
        ({"state": {"life_cycle_state": "HIBERNATING"}, "end_time": 9000}, End.UNKNOWN),
        ({"state": {"life_cycle_state": "TERMINATED", "result_state": "ENLIGHTENED"}}, End.UNKNOWN),
        ({"status": {"state": "TERMINATED", "termination_details": {"code": "SUCCESS"}}}, End.SUCCEEDED),
        ({"state": {"life_cycle_state": "SKIPPED"}}, End.SKIPPED),
    ],
)
def test_words_that_the_sdk_does_not_know_are_no_success(
    server: TinyServer, answer: dict[str, Any], end: End | None
) -> None:
    server.replies(run(**answer))
    assert jobs(server).look_up(7).end is end


def test_what_a_task_left_behind(server: TinyServer) -> None:
    server.replies(json_reply(logs="ä\n", error="why", logs_truncated=True, metadata={"run_id": 5}))
    output = jobs(server).output(5)
    assert (output.logs, output.error, output.truncated) == ("ä\n", "why", True)
    server.replies(json_reply(notebook_output={"result": "x"}))
    assert (jobs(server).output(5).logs, jobs(server).output(5).error) == ("", "")


def test_cancelling_takes_an_empty_answer(server: TinyServer) -> None:
    server.replies(Reply(200, ""))
    jobs(server).cancel(BIG)
    assert server.asked[0].body == {"run_id": BIG}


def test_the_active_runs_of_the_job_are_asked_for(server: TinyServer) -> None:
    server.replies(json_reply(runs=[{"run_id": BIG}, {"run_id": 5}]))
    assert jobs(server).active_runs(9) == [BIG, 5]
    assert (server.asked[0].query["job_id"], server.asked[0].query["active_only"]) == ("9", "true")


@pytest.mark.parametrize(
    "body",
    ['{"tasks": 5}', '{"tasks": [{"task_key": "a"}]}', '{"tasks": [{"run_id": "x"}]}', '{"start_time": "soon"}', "[]"],
)
def test_a_garbled_run_is_no_usable_answer(server: TinyServer, body: str) -> None:
    server.replies(Reply(200, body))
    with pytest.raises(WorkspaceUnavailable):
        jobs(server).look_up(7)


@pytest.mark.parametrize("body", ['{"jobs": [{}]}', '{"jobs": [{"job_id": "x"}]}', '{"jobs": [1]}'])
def test_a_garbled_list_is_no_usable_answer(server: TinyServer, body: str) -> None:
    server.replies(Reply(200, body))
    with pytest.raises(WorkspaceUnavailable):
        jobs(server).find_jobs("x")


@pytest.mark.parametrize(("status", "kind"), [(403, Refused), (401, AuthenticationFailed), (503, WorkspaceUnavailable)])
def test_every_call_makes_one_attempt_and_says_what_it_met(
    server: TinyServer, status: int, kind: type[ProcessManagerError]
) -> None:
    refusal = json_reply(status, error_code="PERMISSION_DENIED", message=f"no {TOKEN}")
    server.answer = lambda asked: json_reply(userName="me") if asked.path == ME else refusal
    port = jobs(server)
    for call in (port.look_up, port.output, port.cancel, port.active_runs):
        server.asked.clear()
        with pytest.raises(kind) as caught:
            call(5)
        assert len([asked for asked in server.asked if asked.path != ME]) == 1
        assert TOKEN not in str(caught.value)
