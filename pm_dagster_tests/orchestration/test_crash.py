"""Daemon, code server and run worker are killed in the middle of a call, and the daemon is started again."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import dagster as dg
import pytest

from pm_dagster.orchestration import names
from pm_dagster_tests.orchestration.deployment import MODULE, Deployment, kill_all

_PATIENCE_SECONDS = 240.0
_ROWS = 3
#: Without asking the ledger it took 916 s. Most of what remains is the start of Dagster's processes on a busy machine.
_LONGEST_SECONDS = 180.0
_HELD = "SELECT count(*) FROM process_manager.entry WHERE state = 'SENDING'"


def _until(true: Callable[[], bool], what: str) -> float:
    """Wait for it; gives the moment."""
    end = time.time() + _PATIENCE_SECONDS
    while not true():
        assert time.time() < end, f"never: {what}"
        time.sleep(0.2)
    return time.time()


def _crash_in_mid_call(deployment: Deployment, daemon: AbstractContextManager[subprocess.Popen[bytes]]) -> None:
    """Let a dispatch come as far as its calls, which take effect and are never answered, and kill everything."""
    deployment.workspace.faults.add("run-now", "hang", "after", seconds=20.0, drop=True, count=_ROWS)
    with daemon as process:
        _until(lambda: len(deployment.workspace.state.runs()) == _ROWS, "the calls are under way")
        assert deployment.sql(_HELD) == [(_ROWS,)]
        kill_all(process)


def _have_begun(deployment: Deployment) -> int:
    return sum(run.start_time is not None for run in deployment.runs())


@pytest.mark.parametrize("crashes", [1, pytest.param(2, marks=pytest.mark.chaos)])
def test_after_a_crash_of_everything_the_next_dispatch_starts_within_seconds(
    deployment: Deployment, crashes: int
) -> None:
    rows = [deployment.add() for _ in range(_ROWS)]
    started = deployment.dagster("sensor", "start", names.SENSOR, *MODULE)
    assert started.returncode == 0, started.stderr[-4000:]
    _crash_in_mid_call(deployment, deployment.daemon())
    for number in range(1, crashes):
        # Again while it recovers: the next dispatch has begun, and may or may not be known to the ledger.
        with deployment.daemon() as process:
            _until(lambda past=number: _have_begun(deployment) > past, "the next dispatch begins")  # type: ignore[misc]
            kill_all(process)

    restarted = time.time()
    with deployment.daemon():
        scheduled = _until(
            lambda: all(deployment.status(row)[0] == "SCHEDULED" for row in rows), "the rows are scheduled"
        )
        *dead, last = deployment.runs()

    assert last.start_time is not None
    figures = (last.start_time - restarted, scheduled - restarted)
    print(f"next dispatch after {figures[0]:.1f} s, rows SCHEDULED after {figures[1]:.1f} s")  # noqa: T201 the figure
    assert figures[1] < _LONGEST_SECONDS
    assert {run.dagster_run.status for run in dead} == {dg.DagsterRunStatus.FAILURE}
    assert len(dead) == crashes
    # What was in doubt is resolved: each row has the one run that its first call started.
    started_runs = {run.run_id for run in deployment.workspace.state.runs()}
    assert {int(deployment.status(row)[1]) for row in rows} == started_runs
    assert len(started_runs) == _ROWS
