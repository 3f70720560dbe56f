"""What the tests deploy that start Dagster's own processes: a real Postgres and a workspace that speaks HTTP."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg2
import pytest

from pm_dagster.orchestration import names
from pm_dagster.sandbox.workspace import LocalWorkspace
from pm_dagster_tests.database import fetched

JOB = 1001
MODULE = ("-m", "pm_dagster.definitions")
DEPLOYED = Path(__file__).parents[2] / "deploy" / "dagster-local" / "dagster.yaml"
_INSERT = """
INSERT INTO {} (cntrt_id, run_sttus_name, wkf_job_id, wkf_job_run_id, file_name, rgstr_file_time)
VALUES (7, 'WAITING', %s, NULL, 'file.csv', now()) RETURNING run_id"""
_STATUS = "SELECT run_sttus_name, wkf_job_run_id FROM {} WHERE run_id = %s"
_END_SECONDS = 30.0


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
            return fetched(cursor)

    def add(self, job_id: int = JOB, table: str = "mm_run_plc") -> int:
        """A row that waits for a new run."""
        return int(self.sql(_INSERT.format(table), (job_id,))[0][0])

    def status(self, run_id: int, table: str = "mm_run_plc") -> tuple[Any, ...]:
        """Status and Databricks run of a row."""
        return self.sql(_STATUS.format(table), (run_id,))[0]

    def dagster(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Dagster's command."""
        command = [sys.executable, "-m", "dagster", *arguments]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=300, check=False)

    @contextmanager
    def daemon(self, *definitions: str) -> Iterator[subprocess.Popen[bytes]]:
        """Dagster's daemon with the code servers and run workers that it starts, all in one process group."""
        process = subprocess.Popen(
            [sys.executable, "-m", "dagster._daemon", "run", *(definitions or MODULE)],
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_END_SECONDS)
            # A run worker may outlive the daemon.
            kill_all(process)

    @contextmanager
    def instance(self) -> Iterator[dg.DagsterInstance]:
        """What the daemon writes to."""
        home = self.environment["DAGSTER_HOME"]
        with pytest.MonkeyPatch.context() as patch:
            # The configuration itself refers to it.
            patch.setenv("DAGSTER_HOME", home)
            instance = dg.DagsterInstance.from_config(home)
        with instance:
            yield instance

    def runs(self) -> list[dg.RunRecord]:
        """Dagster's runs of the job, oldest first."""
        with self.instance() as instance:
            return list(instance.get_run_records(dg.RunsFilter(job_name=names.JOB), ascending=True))

    def first_tick(self, after: float) -> float:
        """When the sensor was first evaluated after a moment."""
        with self.instance() as instance:
            (state,) = [s for s in instance.all_instigator_state() if s.instigator_name == names.SENSOR]
            ticks = instance.get_ticks(state.instigator_origin_id, state.selector_id, after=after)
            return min(tick.timestamp for tick in ticks)

    def moments(self, run_id: str) -> dict[str, float]:
        """When each kind of event of a run was first written."""
        with self.instance() as instance:
            first: dict[str, float] = {}
            for entry in instance.all_logs(run_id):
                if entry.is_dagster_event:
                    first.setdefault(entry.get_dagster_event().event_type_value, entry.timestamp)
            return first


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL for the process and everything in its group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
