"""The whole of it, as it is deployed: Dagster's own processes, a real Postgres, a workspace that speaks HTTP."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from pm_dagster.core.settings import Settings
from pm_dagster.orchestration import names
from pm_dagster.postgres.migrate import initialise
from pm_dagster.sandbox.workspace import LocalWorkspace
from pm_dagster_tests.postgres.world import eventually

_DEPLOYED = Path(__file__).parents[2] / "deploy" / "dagster-local" / "dagster.yaml"
_JOB = 1001
_PATIENCE_SECONDS = 90.0
_INSERT = """
INSERT INTO mm_run_plc (cntrt_id, run_sttus_name, wkf_job_id, wkf_job_run_id, file_name, rgstr_file_time)
VALUES (7, 'WAITING', %s, NULL, 'file.csv', now()) RETURNING run_id"""


class Deployment:
    """A control plane, a workspace and a Dagster home of one test."""

    def __init__(self, database_url: str, workspace: LocalWorkspace, home: Path) -> None:
        self._url = database_url
        self.workspace = workspace
        self.environment = {
            **os.environ,
            "PM_POSTGRES_URL": database_url,
            "DATABRICKS_HOST": workspace.host,
            "DATABRICKS_TOKEN": workspace.token,
            "DAGSTER_HOME": str(home),
        }

    def sql(self, query: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        """Run one statement."""
        with closing(psycopg2.connect(self._url)) as connection, connection, connection.cursor() as cursor:
            cursor.execute(query, values)
            return cursor.fetchall() if cursor.description else []

    def add(self, job_id: int = _JOB) -> int:
        """A row that waits for a new run."""
        return int(self.sql(_INSERT, (job_id,))[0][0])

    def status(self, run_id: int) -> tuple[Any, ...]:
        """Status and Databricks run of a row."""
        return self.sql("SELECT run_sttus_name, wkf_job_run_id FROM mm_run_plc WHERE run_id = %s", (run_id,))[0]

    def dagster(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Dagster's command."""
        command = [sys.executable, "-m", "dagster", *arguments]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture
def deployment(database_url: str, tmp_path: Path) -> Iterator[Deployment]:
    shutil.copy(_DEPLOYED, tmp_path)
    initialise(Settings(postgres_url=database_url))
    with LocalWorkspace() as workspace:
        workspace.state.add_job("ingest", job_id=_JOB, seconds=30.0, max_concurrent_runs=1000)
        yield Deployment(database_url, workspace, tmp_path)


def test_the_job_runs_from_the_command_line(deployment: Deployment) -> None:
    good, bad = deployment.add(), deployment.add(job_id=999_999)
    done = deployment.dagster("job", "execute", "-m", "pm_dagster.definitions", "-j", names.JOB)
    assert done.returncode == 0, done.stderr[-4000:]
    assert deployment.status(good)[0] == "SCHEDULED"
    assert deployment.status(good)[1] is not None
    assert deployment.status(bad)[0] == "FAILED"
    assert deployment.workspace.token not in done.stdout + done.stderr


def test_a_signal_ends_the_dispatch_and_no_op_is_tried_again(deployment: Deployment) -> None:
    deployment.workspace.faults.add("run-now", "hang", seconds=3.0, count=1)
    run_id = deployment.add()
    command = [sys.executable, "-m", "dagster", "job", "execute", "-m", "pm_dagster.definitions", "-j", names.JOB]
    process = subprocess.Popen(command, env=deployment.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        eventually(
            lambda: bool(deployment.sql("SELECT 1 FROM process_manager.entry WHERE state = 'SENDING'")),
            "the call is under way",
        )
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=_PATIENCE_SECONDS)
    finally:
        process.kill()
        process.wait()
    assert process.returncode != 0
    assert b"STEP_UP_FOR_RETRY" not in output
    deployment.dagster("job", "execute", "-m", "pm_dagster.definitions", "-j", names.JOB)
    assert deployment.status(run_id)[0] == "SCHEDULED"
    assert len(deployment.workspace.state.runs()) == 1


def test_a_row_is_scheduled_by_the_daemon_once_the_sensor_is_on(deployment: Deployment) -> None:
    module = ("-m", "pm_dagster.definitions")
    started = deployment.dagster("sensor", "start", names.SENSOR, *module)
    assert started.returncode == 0, started.stderr[-4000:]
    daemon = subprocess.Popen(
        [sys.executable, "-m", "dagster._daemon", "run", *module],
        env=deployment.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        run_id = deployment.add()
        end = time.monotonic() + _PATIENCE_SECONDS
        while deployment.status(run_id)[0] == "WAITING" and time.monotonic() < end:
            time.sleep(0.5)
        assert deployment.status(run_id)[0] == "SCHEDULED"
    finally:
        os.killpg(daemon.pid, signal.SIGINT)
        try:
            daemon.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(daemon.pid, signal.SIGKILL)
            daemon.wait()
