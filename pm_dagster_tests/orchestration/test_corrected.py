"""A row that its owner corrects while a call for it is in doubt: the next run of the job does both in one pass."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest

from pm_dagster.dispatch.model import Call
from pm_dagster.dispatch.service import Dispatch
from pm_dagster.errors import WorkspaceUnavailable
from pm_dagster_tests.fakes.control_plane import InMemoryControlPlane
from pm_dagster_tests.fakes.runs import Fault
from pm_dagster_tests.orchestration.conftest import CodeLocation


def _lost(code_location: CodeLocation, call: Call, *, after: bool) -> None:
    """A dispatcher that lost its answers, and is gone."""
    code_location.runs.faults[call] = [Fault(WorkspaceUnavailable("no answer"), after_effect=after)] * 5
    control = InMemoryControlPlane(code_location.database, code_location.settings)
    with suppress(WorkspaceUnavailable):
        Dispatch(control, code_location.runs, replace(code_location.settings, call_tries=1)).run()
    code_location.runs.faults.clear()
    code_location.database.alive.clear()


def _correct_file(code_location: CodeLocation) -> None:
    row = code_location.database.rows[1]
    row.raw = replace(row.raw, parameters={"RUN_ID": "1", "FILE_NAME": "right.csv"})


@pytest.mark.parametrize("after", [True, False])
def test_a_corrected_file_is_what_runs_in_the_next_run_of_the_job(code_location: CodeLocation, after: bool) -> None:  # noqa: FBT001
    code_location.database.add(1)
    _lost(code_location, Call.RUN_NOW, after=after)
    assert len(code_location.runs.runs) == int(after)
    _correct_file(code_location)

    result = code_location.dispatch()

    assert result.success
    assert code_location.database.statuses() == {1: "SCHEDULED"}
    started = list(code_location.runs.runs.items())
    assert [run.parameters.get("FILE_NAME") for _, run in started] == [*[None] * after, "right.csv"]
    row = code_location.database.rows[1]
    assert row.databricks_run_id == started[-1][0]
    assert "FILE_NAME 'right.csv' instead of none" in row.message
    first, second = code_location.database.ledger.values()
    assert (first.superseded, first.open, first.accepted_run_id) == (True, False, started[0][0] if after else None)
    assert (second.entry.generation, second.open, second.accepted_run_id) == (2, False, started[-1][0])
    metadata = code_location.metadata(result)
    assert (metadata["new/accepted"], metadata["scheduled"]) == (1, 1)
    frame = result.asset_value("dispatched_jobs")
    assert sorted(frame["outcome"]) == ["accepted", "withdrawn"]
    assert code_location.dispatch().success
    assert len(code_location.runs.runs) == len(started)


def test_a_corrected_earlier_run_is_repaired_in_the_next_run_of_the_job(code_location: CodeLocation) -> None:
    """Resolved by one op, which gives what the row asks for now to the op that repairs."""
    wrong, right = code_location.runs.failed_run(), code_location.runs.failed_run()
    code_location.database.add(1, previous_run_id=wrong)
    _lost(code_location, Call.REPAIR, after=True)
    row = code_location.database.rows[1]
    row.raw = replace(row.raw, previous_run_id=right)

    result = code_location.dispatch()

    assert result.success
    assert code_location.database.statuses() == {1: "SCHEDULED"}
    assert [len(code_location.runs.runs[run_id].repairs) for run_id in (wrong, right)] == [1, 1]
    assert row.databricks_run_id == right
    assert f"of run {wrong} was started before the row was corrected" in row.message
    metadata = code_location.metadata(result)
    assert (metadata["repair/accepted"], metadata["scheduled"]) == (1, 1)


def test_a_file_corrected_after_the_answer_is_what_runs_in_the_next_run_of_the_job(code_location: CodeLocation) -> None:
    code_location.database.add(1)
    control = InMemoryControlPlane(code_location.database, code_location.settings)
    dispatch = Dispatch(control, code_location.runs, code_location.settings)
    dispatch.send(dispatch.claim(dispatch.read()).new)
    code_location.database.alive.clear()
    _correct_file(code_location)

    result = code_location.dispatch()

    assert result.success
    assert code_location.database.statuses() == {1: "SCHEDULED"}
    former, now = code_location.runs.runs
    assert code_location.runs.runs[now].parameters["FILE_NAME"] == "right.csv"
    assert code_location.database.rows[1].databricks_run_id == now
    first, _ = code_location.database.ledger.values()
    assert (first.superseded, first.accepted_run_id) == (True, former)
    assert code_location.metadata(result)["scheduled"] == 1
