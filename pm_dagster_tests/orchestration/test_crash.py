"""What dispatches is killed in the middle of a call: the worker alone, or the daemon and its code server as well."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import dagster as dg
import pytest

from pm_dagster.definitions import build_definitions
from pm_dagster.orchestration import names
from pm_dagster.orchestration.resources import ControlTableResource
from pm_dagster_tests.orchestration.deployment import MODULE, Deployment, kill_all

_PATIENCE_SECONDS = 240.0
_ROWS = 3
#: Without asking the ledger it took 916 s. Most of what remains is the start of Dagster's processes on a busy machine.
_LONGEST_SECONDS = 180.0
#: Of them 15 s are the silence that is demanded where nobody can be asked for the worker.
_LONGEST_SILENCE_SECONDS = 60.0
_HELD = "SELECT count(*) FROM process_manager.entry WHERE state = 'SENDING'"


def _until(true: Callable[[], bool], what: str) -> float:
    """Wait for it; gives the moment."""
    end = time.time() + _PATIENCE_SECONDS
    while not true():
        assert time.time() < end, f"never: {what}"
        time.sleep(0.2)
    return time.time()


def _each_has_the_one_run_of_its_first_call(deployment: Deployment, rows: list[int]) -> None:
    """What was in doubt is resolved."""
    started_runs = {run.run_id for run in deployment.workspace.state.runs()}
    assert [deployment.status(row)[0] for row in rows] == ["SCHEDULED"] * _ROWS
    assert {int(deployment.status(row)[1]) for row in rows} == started_runs
    assert len(started_runs) == _ROWS


def _crash_in_mid_call(deployment: Deployment, daemon: AbstractContextManager[subprocess.Popen[bytes]]) -> None:
    """Let a dispatch come as far as its calls, which take effect and are never answered, and kill everything."""
    deployment.workspace.faults.add("run-now", "hang", "after", seconds=20.0, drop=True, count=_ROWS)
    with daemon as process:
        _until(lambda: len(deployment.workspace.state.runs()) == _ROWS, "the calls are under way")
        assert deployment.sql(_HELD) == [(_ROWS,)]
        kill_all(process)


def _have_begun(deployment: Deployment) -> int:
    return sum(run.start_time is not None for run in deployment.runs())


def _figures(deployment: Deployment, restarted: float, scheduled: float) -> str:
    """What happened when, in seconds since the restart."""
    *dead, last = deployment.runs()
    of_last, of_dead = deployment.moments(last.dagster_run.run_id), deployment.moments(dead[-1].dagster_run.run_id)
    kind = dg.DagsterEventType
    moments = {
        "first tick of the sensor (Dagster's own start)": deployment.first_tick(restarted),
        "dead run ended": of_dead[kind.RUN_FAILURE.value],
        "next run queued": of_last[kind.RUN_ENQUEUED.value],
        "taken from the queue": of_last[kind.RUN_STARTING.value],
        "its worker runs": of_last[kind.RUN_START.value],
        "dispatch starts": of_last[kind.STEP_START.value],
        "rows SCHEDULED": scheduled,
    }
    return "after the restart: " + ", ".join(f"{what} {when - restarted:.1f} s" for what, when in moments.items())


@pytest.mark.chaos
@pytest.mark.parametrize("crashes", [1, 2])
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
    print(_figures(deployment, restarted, scheduled))  # noqa: T201 the figures are what is wanted
    assert scheduled - restarted < _LONGEST_SECONDS
    assert {run.dagster_run.status for run in dead} == {dg.DagsterRunStatus.FAILURE}
    assert len(dead) == crashes
    _each_has_the_one_run_of_its_first_call(deployment, rows)


def _worker(deployment: Deployment) -> AbstractContextManager[subprocess.Popen[bytes]]:
    """A run worker alone, which Dagster's command is."""
    return subprocess.Popen(
        [sys.executable, "-m", "dagster", "job", "execute", *MODULE, "-j", names.JOB],
        env=deployment.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _asks_for_a_run(instance: dg.DagsterInstance) -> bool:
    sensor = build_definitions().get_repository_def().get_sensor_def(names.SENSOR)
    with dg.build_sensor_context(instance=instance, resources={"control_table": ControlTableResource()}) as context:
        return bool(sensor.evaluate_tick(context).run_requests)


@pytest.mark.slow
def test_after_the_death_of_a_worker_the_sensor_asks_for_the_next_run_within_seconds(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [deployment.add() for _ in range(_ROWS)]
    _crash_in_mid_call(deployment, _worker(deployment))
    killed = time.time()
    for name, value in deployment.environment.items():
        monkeypatch.setenv(name, value)
    with deployment.instance() as instance:
        assert not _asks_for_a_run(instance), "it may have lost its connection a moment ago"
        asked = _until(lambda: _asks_for_a_run(instance), "the next run is asked for")
        (dead,) = deployment.runs()
        result = build_definitions().resolve_job_def(names.JOB).execute_in_process(instance=instance)
    print(f"after the kill: next run asked for after {asked - killed:.1f} s")  # noqa: T201 the figure is what is wanted
    assert asked - killed < _LONGEST_SILENCE_SECONDS
    assert dead.dagster_run.status is dg.DagsterRunStatus.FAILURE
    assert result.success
    _each_has_the_one_run_of_its_first_call(deployment, rows)
