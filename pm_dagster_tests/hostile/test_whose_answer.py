"""Answers that are not about a row, over real HTTP and a real database: nobody is blamed, and nothing runs twice."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pm_dagster.errors import AllStartsRefused, AuthenticationFailed, ForeignAnswer, NotAdmitted
from pm_dagster.sandbox.workspace.attempts import RepairRequest
from pm_dagster_tests.hostile.deployment import JOB, UNKNOWN_JOB, HostileDeployment

HTML = {"body": "<html><body>Not Found</body></html>", "headers": {"content-type": "text/html"}}
OTHER_JOBS = tuple(range(2001, 2012))
Details = dict[str, Any]


def _text(body: str) -> Details:
    return {"body": body, "headers": {"content-type": "text/plain"}}


def _json(code: str | int | None, message: str, **more: object) -> Details:
    body = {"message": message, **more} if code is None else {"error_code": code, "message": message, **more}
    return {"body": json.dumps(body)}


NOT_THE_API: dict[str, Details] = {
    "404 html": {"status": 404, **HTML},
    "404 empty": {"status": 404, "body": ""},
    "404 ENDPOINT_NOT_FOUND": {"status": 404, **_json("ENDPOINT_NOT_FOUND", "No API found for it")},
    "404 Bad Target": {"status": 404, **_json("NOT_FOUND", "Bad Target: /api/2.2/jobs")},
    "404 Bad Target without a code": {"status": 404, **_json(None, "", error="Bad Target: /api/2.2/jobs")},
    "404 no workspace": {"status": 404, **_json("RESOURCE_DOES_NOT_EXIST", "Workspace 12 does not exist.")},
    "400 text": {"status": 400, **_text("Bad Request")},
    "403 html": {"status": 403, **HTML},
    "405": {"status": 405, **_json("METHOD_NOT_ALLOWED", "no")},
    "407": {"status": 407, "body": ""},
    "413": {"status": 413, **HTML},
    "302": {"status": 302, "body": "", "headers": {"location": "https://accounts.example/login"}},
}
PASSING: dict[str, Details] = {
    "lock": {"status": 400, **_json("COULD_NOT_ACQUIRE_LOCK", "Could not acquire lock")},
    "worker environment": {"status": 400, **_json("INVALID_PARAMETER_VALUE", "Unknown worker environment X(1)")},
    "none of it": {
        "status": 400, **_json("BAD_REQUEST", "Current organization 2 does not have any associated worker environments")
    },
    "faster": {"status": 400, **_json("INVALID_STATE", "Please try again later or try a faster operation.")},
    "bucket": {"status": 400, **_json("BAD_REQUEST", "RPC token bucket limit has been exceeded.")},
    "unexpected": {"status": 400, **_json("BAD_REQUEST", "Unexpected error")},
    "cluster": {"status": 400, **_json("INVALID_STATE", "ClusterNotReadyException")},
    "423": {"status": 423, "body": ""},
    "aborted": {"status": 409, **_json("ABORTED", "a sequencer check failed")},
    "limit": {"status": 400, **_json("REQUEST_LIMIT_EXCEEDED", "slow down")},
    "one 404": NOT_THE_API["404 html"],
    "one 403": {"status": 403, **_json("PERMISSION_DENIED", f"User x does not have Manage Run on job {JOB}")},
}  # fmt: skip


@pytest.fixture
def jobs(deployment: HostileDeployment) -> HostileDeployment:
    """A deployment with a dozen jobs, whose runs go on for as long as a test."""
    for job_id in OTHER_JOBS:
        deployment.workspace.state.add_job(f"job {job_id}", job_id=job_id, seconds=None, max_concurrent_runs=1000)
    return deployment


def _fault(deployment: HostileDeployment, endpoint: str, details: Details, count: int | None = None) -> None:
    deployment.workspace.faults.add(endpoint, "status", count=count, **details)


@pytest.mark.parametrize("running", [True, False])
def test_no_foreign_answer_starts_a_run_beside_the_one_that_is_there(
    deployment: HostileDeployment, *, running: bool
) -> None:
    for name, details in NOT_THE_API.items():
        run = deployment.workspace.state.add_run(JOB, outcome="fail" if running else "succeed")
        if running:
            deployment.workspace.state.repair(RepairRequest(run.run_id, None, rerun_all_failed_tasks=True))
        row = deployment.add(run=run.run_id)
        before = len(deployment.workspace.state.runs())
        _fault(deployment, "runs/get", details, count=1)
        deployment.dispatch()
        assert len(deployment.workspace.state.runs()) == before, name
        assert deployment.status(row) == ("SCHEDULED" if running else "SUCCESS"), name
        deployment.workspace.faults.clear()


@pytest.mark.parametrize("endpoint", ["run-now", "runs/get", "runs/repair", "*"])
def test_an_address_that_answers_nobody_stops_the_pass_and_refuses_no_row(
    deployment: HostileDeployment, endpoint: str
) -> None:
    repairs = endpoint.startswith("runs/")
    for name, details in NOT_THE_API.items():
        run = deployment.workspace.state.add_run(JOB, outcome="fail")
        rows = [deployment.add(run=run.run_id)] if repairs else [deployment.add() for _ in range(3)]
        _fault(deployment, endpoint, details)
        if endpoint == "runs/repair":
            # The look-up is answered, so it may be this row alone.
            deployment.dispatch()
        else:
            with pytest.raises((ForeignAnswer, NotAdmitted)) as caught:
                deployment.dispatch()
            assert deployment.workspace.host in str(caught.value), name
            assert f"HTTP {details['status']}" in str(caught.value), name
        assert {deployment.status(row) for row in rows} == {"WAITING"}, name
        deployment.workspace.faults.clear()
        deployment.dispatch()
        assert {deployment.status(row) for row in rows} == {"SCHEDULED"}, name
        assert len(run.attempts) == 1 + repairs, name
        assert all(deployment.started(row) <= 1 for row in rows), name


@pytest.mark.parametrize("endpoint", ["run-now", "runs/get", "runs/repair"])
def test_what_passes_by_itself_is_tried_again(deployment: HostileDeployment, endpoint: str) -> None:
    for name, details in PASSING.items():
        # By some answers nothing was started, so they do not come after the effect.
        for when in ("before",) if name in ("limit", "one 403") else ("before", "after"):
            run = deployment.workspace.state.add_run(JOB, outcome="fail")
            row = deployment.add(run=None if endpoint == "run-now" else run.run_id)
            deployment.workspace.faults.add(endpoint, "status", when, count=1, **details)
            deployment.dispatch()
            assert deployment.status(row) == "SCHEDULED", (name, when)
            assert deployment.started(row) == 1, (name, when)
            assert len(run.attempts) == (1 if endpoint == "run-now" else 2), (name, when)
            deployment.workspace.faults.clear()


@pytest.mark.parametrize(
    "details",
    [
        {"status": 400, **_text("Invalid Token")},
        {"status": 400, **_json("INVALID_TOKEN", "of another workspace")},
        {"status": 403, **_text("Invalid access token.")},
        {
            "status": 400,
            **_text("io.jsonwebtoken.IncorrectClaimException: Expected iss claim to be: https://a, was: b"),
        },
        {"status": 403, **_json(403, "Unauthorized access to Org: 7")},
    ],
)
def test_a_token_of_another_workspace_stops_the_pass_and_blames_no_row(
    deployment: HostileDeployment, details: Details
) -> None:
    rows = [deployment.add() for _ in range(4)]
    _fault(deployment, "*", details)
    with pytest.raises(AuthenticationFailed, match="tenant"):
        deployment.dispatch()
    assert {deployment.status(row) for row in rows} == {"WAITING"}
    deployment.workspace.faults.clear()
    assert deployment.dispatch().scheduled == 4


def test_a_maintenance_that_forbids_everybody_while_me_answers_fails_no_row(jobs: HostileDeployment) -> None:
    rows = [jobs.add(job_id=job_id) for job_id in OTHER_JOBS for _ in range(3)]
    details = {"status": 403, **_json("PERMISSION_DENIED", "User x does not have Manage Run permissions on it")}
    _fault(jobs, "run-now", details)
    with pytest.raises(AllStartsRefused, match="PERMISSION_DENIED"):
        jobs.dispatch()
    assert {jobs.status(row) for row in rows} == {"WAITING"}
    told = [event for row in rows for event in jobs.events(row) if event.startswith("deferred")]
    assert told
    assert all("not held against the row" in event for event in told)
    jobs.workspace.faults.clear()
    assert jobs.dispatch().scheduled == len(rows)
    assert {jobs.started(row) for row in rows} == {1}


def test_a_workspace_that_has_none_of_the_jobs_is_another_one(jobs: HostileDeployment) -> None:
    rows = [jobs.add(job_id=UNKNOWN_JOB + number) for number in range(7)]
    with pytest.raises(AllStartsRefused, match="does not exist"):
        jobs.dispatch()
    assert {jobs.status(row) for row in rows} == {"WAITING"}


def test_a_refusal_says_which_rule_made_it_final(jobs: HostileDeployment) -> None:
    bad, forbidden = jobs.add(job_id=UNKNOWN_JOB), jobs.add(job_id=OTHER_JOBS[0])
    good = [jobs.add(job_id=job_id) for job_id in OTHER_JOBS[1:]]
    jobs.workspace.state.forbid(OTHER_JOBS[0])
    report = jobs.dispatch()
    assert report.scheduled == len(good)
    assert {jobs.status(bad), jobs.status(forbidden)} == {"FAILED"}
    for row in (bad, forbidden):
        (told,) = [event for event in jobs.events(row) if event.startswith("quarantined")]
        ((rule,),) = jobs.sql("SELECT rule FROM process_manager.entry WHERE run_id = %s", row)
        assert f"[final: {rule}]" in told
        assert "the Jobs API" in rule


def test_a_lone_refusal_that_names_nobody_waits_with_its_reason(deployment: HostileDeployment) -> None:
    row = deployment.add()
    _fault(deployment, "run-now", {"status": 400, **_json("BAD_REQUEST", "no")})
    for _ in range(7):
        deployment.dispatch()
    assert deployment.status(row) == "WAITING"
    ((state, reason),) = deployment.sql("SELECT state, reason FROM process_manager.entry WHERE run_id = %s", row)
    assert state == "DEFERRED"
    assert "BAD_REQUEST no" in reason


def test_the_reason_has_the_last_words_beside_the_lost_answer(deployment: HostileDeployment) -> None:
    row = deployment.add(job_id=UNKNOWN_JOB)
    _fault(deployment, "run-now", {"status": 503}, count=1)
    deployment.dispatch()
    assert deployment.status(row) == "FAILED"
    ((message,),) = deployment.sql("SELECT state_msg FROM mm_run_plc WHERE run_id = %s", row)
    assert f"Job {UNKNOWN_JOB} does not exist." in message
    assert "answer was lost" in message


def test_a_quota_passes_and_fails_no_row(deployment: HostileDeployment) -> None:
    rows = [deployment.add() for _ in range(3)]
    text = "There were already 10000 jobs created in past 3600 seconds, exceeding rate limit: 10000 per 3600 seconds."
    _fault(deployment, "run-now", {"status": 400, **_json("INVALID_STATE", text)}, count=2)
    deployment.dispatch()
    assert {deployment.status(row) for row in rows} == {"SCHEDULED"}
    assert {deployment.started(row) for row in rows} == {1}
