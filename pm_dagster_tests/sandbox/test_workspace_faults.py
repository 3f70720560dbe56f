"""What goes wrong on purpose: every kind of fault, before and after the effect, and the limits."""

from __future__ import annotations

import time

import pytest
import requests
from databricks.sdk import WorkspaceClient
from databricks.sdk.core import Config
from databricks.sdk.errors import InternalError

from pm_dagster.sandbox.workspace import LocalWorkspace

RUN_NOW = "/api/2.2/jobs/run-now"


@pytest.fixture
def workspace(running: LocalWorkspace) -> LocalWorkspace:
    running.reset()
    running.state.add_job("orders", 7, max_concurrent_runs=1000)
    return running


def post(workspace: LocalWorkspace, timeout: float = 10) -> requests.Response:
    head = {"Authorization": f"Bearer {workspace.token}"}
    return requests.post(workspace.host + RUN_NOW, json={"job_id": 7}, headers=head, timeout=timeout)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", ["reset", "fin", "truncated", "status", "html", "text"])
def test_each_kind_before_and_after_the_effect(workspace: LocalWorkspace, kind: str, when: str) -> None:
    workspace.faults.add("run-now", kind, when, status=504)
    if kind in ("reset", "fin"):
        with pytest.raises(requests.ConnectionError) as broken:
            post(workspace)
        assert ("reset by peer" in str(broken.value)) == (kind == "reset")
    elif kind == "truncated":
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            post(workspace)
    else:
        answer = post(workspace)
        assert answer.status_code == {"status": 504, "html": 200, "text": 500}[kind]
        assert (answer.headers["content-type"].split(";")[0]) == {
            "status": "application/json", "html": "text/html", "text": "text/plain"
        }[kind]  # fmt: skip
    assert len(workspace.state.runs()) == (1 if when == "after" else 0)
    (entry,) = workspace.log.entries("run-now")
    assert entry.effect is (when == "after")
    assert entry.fault == f"{when} {kind}"
    assert entry.status == (0 if kind in ("reset", "fin") else {"status": 504, "text": 500}.get(kind, 200))
    assert post(workspace).json()["run_id"]


def test_a_hang_may_vary(workspace: LocalWorkspace) -> None:
    workspace.faults.add("run-now", "hang", seconds=0.15, jitter=0.15, count=12)
    took = []
    for _ in range(12):
        began = time.monotonic()
        assert post(workspace).status_code == 200
        took.append(time.monotonic() - began)
    # Twelve of them within 60 ms of one another: chance makes that one time in a million.
    assert max(took) - min(took) > 0.06
    with pytest.raises(TypeError, match="seconds and jitter are numbers"):
        workspace.faults.add("run-now", "hang", jitter="0.1")


def test_hang(workspace: LocalWorkspace) -> None:
    workspace.faults.add("run-now", "hang", "after", seconds=0.4)
    with pytest.raises(requests.exceptions.ReadTimeout):
        post(workspace, timeout=0.1)
    assert len(workspace.state.runs()) == 1
    workspace.faults.add("run-now", "hang", "before", seconds=0.4)
    with pytest.raises(requests.exceptions.ReadTimeout):
        post(workspace, timeout=0.1)
    assert len(workspace.state.runs()) == 1
    time.sleep(0.6)
    assert len(workspace.state.runs()) == 2
    workspace.faults.add("run-now", "hang", "before", seconds=0.1, drop=True)
    with pytest.raises(requests.ConnectionError):
        post(workspace)
    assert len(workspace.state.runs()) == 2


def test_skip_count_match_and_patterns(workspace: LocalWorkspace) -> None:
    workspace.faults.add("run-*", "status", status=503, skip=2, count=2, headers={"Retry-After": "1.58"})
    answers = [post(workspace) for _ in range(6)]
    assert [each.status_code for each in answers] == [200, 200, 503, 503, 200, 200]
    assert answers[2].headers["retry-after"] == "1.58"
    assert answers[2].json()["error_code"] == "TEMPORARILY_UNAVAILABLE"
    workspace.faults.clear()
    workspace.faults.add("*", "status", status=502, body="<html>", match='"job_id": 8', count=None)
    assert post(workspace).status_code == 200
    workspace.faults.add("*", "status", status=502, body="<html>", match='"job_id": 7', count=None)
    assert {post(workspace).text for _ in range(3)} == {"<html>"}
    with pytest.raises(ValueError, match="kind"):
        workspace.faults.add("*", "earthquake")
    with pytest.raises(ValueError, match="when"):
        workspace.faults.add("*", "reset", "during")


def test_the_sdk_meets_a_text_that_it_cannot_parse(workspace: LocalWorkspace) -> None:
    client = WorkspaceClient(config=Config(host=workspace.host, token=workspace.token, auth_type="pat"))
    workspace.faults.add("run-now", "text")
    with pytest.raises(InternalError):
        client.jobs.run_now(7)


def test_the_sdk_resends_after_a_reset(workspace: LocalWorkspace) -> None:
    client = WorkspaceClient(config=Config(host=workspace.host, token=workspace.token, auth_type="pat"))
    workspace.faults.add("run-now", "reset", "after")
    assert client.jobs.run_now(7, idempotency_token="a").run_id == workspace.state.runs()[0].run_id
    assert workspace.log.count("run-now") == 2
    assert workspace.log.count("run-now", effect=True) == 1
    workspace.faults.add("runs/get", "status", status=500)
    with pytest.raises(InternalError):
        client.jobs.get_run(workspace.state.runs()[0].run_id)


def test_limits(workspace: LocalWorkspace) -> None:
    workspace.limits.use_documented()
    answers = [post(workspace) for _ in range(60)]
    throttled = [each for each in answers if each.status_code == 429]
    assert 5 < len(throttled) < 41
    assert throttled[0].json()["error_code"] == "REQUEST_LIMIT_EXCEEDED"
    assert "retry-after" not in throttled[0].headers
    assert len(workspace.state.runs()) == 60 - len(throttled)
    workspace.limits.set({"run-now": 0.5}, retry_after=3)
    assert [post(workspace).status_code for _ in range(2)] == [200, 429]
    assert post(workspace).headers["retry-after"] == "3"
    workspace.limits.clear()
    assert {post(workspace).status_code for _ in range(30)} == {200}


def test_stopping_does_not_wait_for_a_hang(workspace: LocalWorkspace) -> None:
    workspace.faults.add("run-now", "hang", seconds=60)
    with pytest.raises(requests.exceptions.ReadTimeout):
        post(workspace, timeout=0.1)
    began = time.monotonic()
    workspace.stop()
    assert time.monotonic() - began < 3
    workspace.start()
    assert post(workspace).status_code == 200
