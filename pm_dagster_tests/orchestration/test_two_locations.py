"""The same code, loaded under two names for two control tables, in one Dagster instance with its run queue."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pm_dagster.orchestration import names
from pm_dagster_tests.orchestration.deployment import JOB, Deployment, kill_all

_PATIENCE_SECONDS = 240.0
#: A code location of its own: what a deployment has in its environment is in the file.
_LOCATION = """
import os
os.environ["PM_RUN_TABLE"] = "{table}"
os.environ["PM_WAIT_VIEW"] = "{view}"
from pm_dagster.definitions import defs
"""
_SECOND = """
CREATE TABLE second (LIKE mm_run_plc INCLUDING ALL);
CREATE VIEW second_vw AS
SELECT run_id, cntrt_id, file_name, wkf_job_id, wkf_job_run_id FROM second WHERE run_sttus_name = 'WAITING'"""


def _until(true: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + _PATIENCE_SECONDS
    while not true():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.2)


def _location(folder: Path, table: str, view: str) -> tuple[str, str]:
    path = folder / f"{table}.py"
    path.write_text(_LOCATION.format(table=table, view=view))
    return "-f", str(path)


def _switch_on(deployment: Deployment, location: tuple[str, str]) -> subprocess.CompletedProcess[str]:
    return deployment.dagster("sensor", "start", names.SENSOR, *location)


@pytest.mark.chaos
def test_one_that_is_in_a_long_call_does_not_hold_up_the_other(deployment: Deployment, tmp_path: Path) -> None:
    deployment.sql(_SECOND)
    slow = _location(tmp_path, "mm_run_plc", "mm_run_wait_vw")
    other = _location(tmp_path, "second", "second_vw")
    for location in (slow, other):
        started = _switch_on(deployment, location)
        assert started.returncode == 0, started.stderr[-4000:]
    deployment.workspace.state.add_job("slow", job_id=JOB + 1, seconds=30.0, max_concurrent_runs=1000)
    held = deployment.add(JOB + 1)
    deployment.workspace.faults.add("run-now", "hang", "before", seconds=300.0, drop=True, match=str(JOB + 1))
    deployment.environment["PM_HTTP_TIMEOUT_SECONDS"] = "600"
    with deployment.daemon(*slow, *other) as daemon:
        _until(
            lambda: (
                deployment.sql("SELECT state FROM process_manager.entry WHERE run_id = %s", (held,)) == [("SENDING",)]
            ),
            "the first dispatch is in its call",
        )
        row = deployment.add(table="second")
        _until(lambda: deployment.status(row, "second")[0] == "SCHEDULED", "the other dispatches meanwhile")
        assert deployment.status(held)[0] == "WAITING"
        runs = deployment.runs()
        # Asked to end, it would wait for its call.
        kill_all(daemon)

    values = [record.dagster_run.tags[names.SINGLE_FLIGHT] for record in runs]
    assert len(runs) == len(set(values)) == 2
    origins = [record.dagster_run.remote_job_origin for record in runs]
    assert [origin.location_name for origin in origins if origin] == ["mm_run_plc.py", "second.py"]
