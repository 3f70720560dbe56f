"""What our own code, or an SDK that it does not fit, gets wrong: it stops, no row is blamed, nothing runs twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from databricks.sdk.service import jobs
from databricks.sdk.version import __version__

from pm_dagster.databricks.jobs_service import JobsService
from pm_dagster.errors import Defect, WorkspaceUnavailable
from pm_dagster_tests.hostile.adapter_calls import CALLS
from pm_dagster_tests.hostile.deployment import JOB, HostileDeployment
from pm_dagster_tests.hostile.raw_server import RawServer, json_answer

_STARTING = {"run_now": jobs.RunNowResponse, "repair_run": jobs.RepairRunResponse}


def _asks_its_client(self: Any, *_given: object, **_named: object) -> object:  # noqa: ANN401 the SDK's class
    return self._api.session_of_tomorrow


def _takes_other_arguments(_self: object, *, request_of_tomorrow: object) -> object:
    return request_of_tomorrow


def _no_such_name(_body: object) -> object:
    raise NameError("name 'of_tomorrow' is not defined")


def _no_such_module(_body: object) -> object:
    raise ModuleNotFoundError("No module named 'protobuf_of_tomorrow'")


def _no_such_attribute(_body: object) -> object:
    return jobs.Run().field_of_tomorrow  # type: ignore[attr-defined]  # as an adapter meets a field that was renamed


def _stopped(deployment: HostileDeployment, words: str) -> None:
    with pytest.raises(Defect, match=words) as caught:
        deployment.dispatch(concurrency=1)
    assert f"databricks-sdk {__version__}" in str(caught.value)


def _rows(deployment: HostileDeployment, method: str) -> tuple[list[int], Callable[[], list[int]]]:
    """Three waiting rows, and how often each was started, or its run repaired."""
    if method == "run_now":
        rows = [deployment.add() for _ in range(3)]
        return rows, lambda: [deployment.started(row) for row in rows]
    runs = [deployment.workspace.state.add_run(JOB) for _ in range(3)]
    return [deployment.add(run=run.run_id) for run in runs], lambda: [len(run.attempts) - 1 for run in runs]


@pytest.mark.parametrize("method", sorted(_STARTING))
@pytest.mark.parametrize(
    ("broken", "words"),
    [(_asks_its_client, "AttributeError: .*session_of_tomorrow"), (_takes_other_arguments, "TypeError: .*argument")],
)
def test_a_call_that_cannot_be_made_is_not_sent_and_blames_nobody(
    deployment: HostileDeployment,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    broken: Callable[..., object],
    words: str,
) -> None:
    rows, started = _rows(deployment, method)
    deployment.dispatch(dispatch_limit=1)
    done = started()
    with monkeypatch.context() as patch:
        patch.setattr(jobs.JobsAPI, method, broken)
        before = len(deployment.workspace.log.entries())
        _stopped(deployment, words)
        posts = [
            call for call in deployment.workspace.log.entries()[before:] if call.path.endswith(("run-now", "repair"))
        ]
        assert posts == []
    assert [deployment.status(row) for row in rows] == ["SCHEDULED", "WAITING", "WAITING"]
    assert started() == done == [1, 0, 0]
    deployment.dispatch()
    assert {deployment.status(row) for row in rows} == {"SCHEDULED"}
    assert started() == [1, 1, 1]


@pytest.mark.parametrize("method", sorted(_STARTING))
@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (_no_such_name, "NameError"),
        (_no_such_module, "ModuleNotFoundError"),
        (_no_such_attribute, "AttributeError: .*field_of_tomorrow"),
    ],
)
def test_an_answer_that_our_side_cannot_read_leaves_what_was_sent_in_doubt(
    deployment: HostileDeployment,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    broken: Callable[..., object],
    words: str,
) -> None:
    rows, started = _rows(deployment, method)
    # The rehearsal before the first pass is behind us.
    deployment.dispatch(dispatch_limit=1)
    with monkeypatch.context() as patch:
        patch.setattr(_STARTING[method], "from_dict", broken)
        _stopped(deployment, words)
    # One was sent and is not forgotten, the other was not sent any more.
    assert [deployment.status(row) for row in rows] == ["SCHEDULED", "WAITING", "WAITING"]
    assert sorted(started()) == [0, 1, 1]
    assert any("databricks-sdk" in event for row in rows for event in deployment.events(row))
    deployment.dispatch()
    assert {deployment.status(row) for row in rows} == {"SCHEDULED"}
    assert started() == [1, 1, 1]


@pytest.mark.parametrize(
    ("kind", "name", "broken"),
    [
        (jobs.JobsAPI, "run_now", _asks_its_client),
        (jobs.JobsAPI, "list_runs", _takes_other_arguments),
        (jobs.JobsAPI, "get", _takes_other_arguments),
        (jobs.Run, "from_dict", _no_such_attribute),
        (jobs.RunNowResponse, "from_dict", lambda _body: jobs.RunNowResponse(run_id=None)),
        (jobs.RepairRunResponse, "from_dict", lambda _body: jobs.RepairRunResponse(repair_id=2**40)),
        (jobs.RunState, "from_dict", lambda _body: jobs.RunState()),
    ],
)
def test_an_sdk_that_does_not_fit_is_found_out_before_anything_is_sent(
    deployment: HostileDeployment, monkeypatch: pytest.MonkeyPatch, kind: type, name: str, broken: Callable[..., object]
) -> None:
    row = deployment.add()
    with monkeypatch.context() as patch:
        patch.setattr(JobsService, "_rehearsed", set())
        patch.setattr(kind, name, broken)
        _stopped(deployment, "Process Manager does not fit")
        assert deployment.workspace.log.entries() == []
    deployment.dispatch()
    assert (deployment.status(row), deployment.started(row)) == ("SCHEDULED", 1)


@pytest.mark.parametrize("call", sorted(set(CALLS) - {"check"}))
@pytest.mark.parametrize(
    "body", ['"x"', "[]", '{"run_id": 7, "state": "x", "runs": "x", "settings": "x"}', '{"runs": [7], "settings": [7]}']
)
def test_an_odd_answer_is_not_taken_for_our_fault(server: RawServer, call: str, body: str) -> None:
    server.says(json_answer(json.loads(body)))
    with suppress(WorkspaceUnavailable):
        CALLS[call](server.runs())
