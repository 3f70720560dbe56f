"""A dispatch under Dagster that looks for further rows after its last one."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg
import pytest

from pm_dagster.dispatch.model import Call
from pm_dagster.orchestration import names
from pm_dagster_tests.ledger.postgres_control_table import eventually
from pm_dagster_tests.orchestration.conftest import CodeLocation, process_manager_job
from pm_dagster_tests.orchestration.deployment import MODULE, Deployment, kill_all

_LONGEST_SECONDS = 60.0
_CAME = "rows that came while it lingered"


def _after_the_first(code_location: CodeLocation) -> threading.Thread:
    """Adds a new row and a repair once the first row is done."""

    def add() -> None:
        eventually(lambda: code_location.database.statuses()[1] == "SCHEDULED", "the first row is done")
        code_location.database.add(2)
        code_location.database.add(11, previous_run_id=code_location.runs.failed_run(repairs=1))

    thread = threading.Thread(target=add)
    thread.start()
    return thread


def test_rows_that_come_while_it_lingers_are_dispatched_in_the_same_run(code_location: CodeLocation) -> None:
    code_location.with_settings(linger_seconds=3.0)
    code_location.database.add(1)
    thread = _after_the_first(code_location)
    result = code_location.dispatch()
    thread.join()
    assert result.success
    assert code_location.database.statuses() == {1: "SCHEDULED", 2: "SCHEDULED", 11: "SCHEDULED"}
    assert (code_location.runs.count(Call.RUN_NOW), code_location.runs.count(Call.REPAIR)) == (2, 1)
    told = code_location.metadata(result)
    assert (told[_CAME], told["scheduled"], told["read"], told["API calls"]) == (2, 3, 3, 4)
    assert (told["new/accepted"], told["repair/accepted"], told["taken over"]) == (2, 1, 0)
    assert all(f"| {row} |" in told["rows"] for row in (1, 2, 11))


def test_a_run_that_does_not_linger_says_nothing_of_it(code_location: CodeLocation) -> None:
    code_location.database.add(1)
    result = code_location.dispatch()
    assert result.success
    assert _CAME not in code_location.metadata(result)


def test_it_ends_at_the_limit_of_its_rows(code_location: CodeLocation) -> None:
    code_location.with_settings(linger_seconds=60.0, dispatch_limit=2)
    code_location.database.add(1)
    thread = _after_the_first(code_location)
    began = time.monotonic()
    result = code_location.dispatch()
    thread.join()
    assert result.success
    assert time.monotonic() - began < 30.0
    assert list(code_location.database.statuses().values()).count("SCHEDULED") == 2


def test_it_ends_at_the_deadline_of_the_run(code_location: CodeLocation) -> None:
    code_location.with_settings(linger_seconds=600.0, deadline_seconds=3.0)
    code_location.database.add(1)
    result = code_location.dispatch()
    assert result.success
    assert code_location.metadata(result)[_CAME] == 0


def test_a_part_of_a_run_that_is_executed_again_takes_no_further_rows(stored: CodeLocation) -> None:
    stored.database.add(1)
    job = dg.reconstructable(process_manager_job)
    with dg.execute_job(job, stored.instance) as first:
        assert first.success
    stored.with_settings(linger_seconds=600.0)
    stored.database.add(2)
    options = dg.ReexecutionOptions(first.run_id, step_selection=["dispatched_jobs.mark_scheduled"])
    with dg.execute_job(job, stored.instance, reexecution_options=options) as again:
        assert again.success
    assert stored.database.statuses() == {1: "SCHEDULED", 2: "WAITING"}


@contextmanager
def _lingering(deployment: Deployment) -> Iterator[subprocess.Popen[bytes]]:
    """A run of its own process that has done its first row and lingers."""
    row = deployment.add()
    process = subprocess.Popen(
        [sys.executable, "-m", "dagster", "job", "execute", *MODULE, "-j", names.JOB],
        env={**deployment.environment, "PM_LINGER_SECONDS": "600"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        eventually(lambda: deployment.status(row)[0] == "SCHEDULED", "the first row is done")
        yield process
    finally:
        kill_all(process)


def _all_once(deployment: Deployment, rows: int) -> None:
    assert deployment.sql("SELECT run_sttus_name, count(*) FROM mm_run_plc GROUP BY 1") == [("SCHEDULED", rows)]
    assert len(deployment.workspace.state.runs()) == rows


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_lingers_takes_a_row_at_once_and_can_be_cancelled(
    deployment: Deployment, number: signal.Signals
) -> None:
    with _lingering(deployment) as process:
        row = deployment.add()
        eventually(lambda: deployment.status(row)[0] == "SCHEDULED", "the row that came is done")
        (run,) = deployment.runs()
        with deployment.instance() as instance:
            instance.report_run_canceling(run.dagster_run)
        process.send_signal(number)
        asked = time.monotonic()
        assert process.wait(_LONGEST_SECONDS) != 0
        assert time.monotonic() - asked < 20.0
    (run,) = deployment.runs()
    assert run.dagster_run.status is dg.DagsterRunStatus.CANCELED
    assert deployment.sql("SELECT count(*) FROM process_manager.dispatcher WHERE ended_at IS NULL") == [(0,)]
    _all_once(deployment, 2)


@pytest.mark.slow
def test_two_that_linger_share_what_comes_and_one_that_is_killed_leaves_nothing_undone(deployment: Deployment) -> None:
    with _lingering(deployment) as first, _lingering(deployment):
        for _ in range(6):
            deployment.add()
        eventually(
            lambda: deployment.sql("SELECT count(*) FROM mm_run_plc WHERE run_sttus_name = 'WAITING'") == [(0,)],
            "all that came is done",
        )
        # Its call takes effect and is never answered.
        deployment.workspace.faults.add("run-now", "hang", "after", seconds=20.0, drop=True, count=1)
        row = deployment.add()
        eventually(lambda: len(deployment.workspace.state.runs()) == 9, "the call has taken effect")
        kill_all(first)
        eventually(lambda: deployment.status(row)[0] == "SCHEDULED", "the other one sees to it")
    _all_once(deployment, 9)
