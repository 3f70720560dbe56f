"""`pm` with a database and a workspace of the test's own, as somebody has it in a shell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg2

from pm_dagster.sandbox.workspace import LocalWorkspace
from pm_dagster_tests.database import fetched
from pm_dagster_tests.in_process import run_pm

JOB = 1001
UNKNOWN_JOB = 999_999
_INSERT = """
INSERT INTO mm_run_plc (cntrt_id, run_sttus_name, wkf_job_id, wkf_job_run_id, file_name, rgstr_file_time)
VALUES (7, 'WAITING', %s, %s, 'file.csv', now()) RETURNING run_id
"""


@contextmanager
def workspace_with_a_job() -> Iterator[LocalWorkspace]:
    """A workspace whose one job takes half a minute a run, and as many runs as a test starts."""
    with LocalWorkspace() as running:
        running.state.add_job("ingest", job_id=JOB, seconds=30.0, max_concurrent_runs=1000)
        yield running


@dataclass
class Shell:
    """`pm` with a database and a workspace.

    Attributes:
        database_url: The database with the control table.
        workspace: The local workspace.
        settings: More variables of each call.
    """

    database_url: str
    workspace: LocalWorkspace
    settings: dict[str, str] = field(default_factory=dict)

    def environment(self, **more: str) -> dict[str, str]:
        """The variables for a process."""
        return {
            **os.environ,
            "PM_POSTGRES_URL": self.database_url,
            "DATABRICKS_HOST": self.workspace.host,
            "DATABRICKS_TOKEN": self.workspace.token,
            "PM_CALL_BACKOFF_SECONDS": "0.05",
            **self.settings,
            **more,
        }

    def start(self, *arguments: str, **more: str) -> subprocess.Popen[str]:
        """Start `pm` as a process of its own."""
        command = [sys.executable, "-m", "pm_dagster.cli", *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=self.environment(**more), stdout=pipe, stderr=pipe, text=True)

    def pm(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run `pm` to its end: in this process, or in one of its own where it is to import other libraries."""
        environment = self.environment(**more)
        if environment.get("PYTHONPATH") == os.environ.get("PYTHONPATH"):
            return run_pm(*arguments, environment=environment)
        with self.start(*arguments, **more) as process:
            out, err = process.communicate(timeout=120)
            return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def json(self, *arguments: str, **more: str) -> dict[str, Any]:
        """Run `pm ... --json`, which must succeed, and give the one object on its standard output."""
        return self.json_and_code(0, *arguments, **more)

    def json_and_code(self, code: int, *arguments: str, **more: str) -> dict[str, Any]:
        """The same with the exit code that is expected."""
        done = self.pm(*arguments, "--json", **more)
        assert done.returncode == code, done.stderr
        value: dict[str, Any] = json.loads(done.stdout)
        return value

    def sql(self, query: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        """Run one statement."""
        with closing(psycopg2.connect(self.database_url)) as connection, connection, connection.cursor() as cursor:
            cursor.execute(query, values)
            return fetched(cursor)

    def add(self, count: int = 1, job_id: int | None = JOB, run: int | None = None) -> list[int]:
        """Waiting rows, new or with this earlier run; gives their ids."""
        return [self.sql(_INSERT, (job_id, run))[0][0] for _ in range(count)]

    def add_repairs(self, count: int, repairs: int = 0) -> list[int]:
        """Waiting rows whose earlier run failed."""
        runs = [self.workspace.state.add_run(JOB, repairs=repairs).run_id for _ in range(count)]
        return [self.add(run=run)[0] for run in runs]

    def statuses(self) -> dict[str, int]:
        """Rows of the control table by status."""
        return dict(self.sql("SELECT run_sttus_name, count(*) FROM mm_run_plc GROUP BY 1"))

    def runs_per_row(self) -> list[int]:
        """How many Databricks runs carry each RUN_ID parameter."""
        seen: dict[str, int] = {}
        for run in self.workspace.state.runs():
            if "RUN_ID" in run.parameters and len(run.attempts) == 1:
                seen[run.parameters["RUN_ID"]] = seen.get(run.parameters["RUN_ID"], 0) + 1
        return list(seen.values())
