"""A copy of the bundle in front of a sandbox of its own, and the means to run a command there.

Put here: what the tests with the CLI and those without it share. Keep out: expectations.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import psycopg2

from pm_dagster.sandbox.place import Open
from pm_dagster.sandbox.workspace.model import Job
from pm_dagster_tests.bundle.bundle_files import ROOT
from pm_dagster_tests.database import fetched

CLI = "databricks"
INGEST_JOB = 1001
_INSERT = """
INSERT INTO mm_run_plc (cntrt_id, run_sttus_name, wkf_job_id, wkf_job_run_id, file_name, rgstr_file_time)
VALUES (7, 'WAITING', %s, %s, 'file.csv', now()) RETURNING run_id"""
_PARTS = ("databricks.yml", "resources", "pm_dagster", ".gitignore")


def copy_of_the_bundle(folder: Path) -> Path:
    """A copy of what a deployment reads: a test may edit it, and the CLI leaves its own folder there."""
    for name in _PARTS:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    return folder


@dataclass
class Deployment:
    """A sandbox whose control table has waiting jobs, and the bundle's folder."""

    sandbox: Open
    folder: Path
    home: Path

    def cli(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run the real CLI in the bundle's folder, with nothing of this machine's own configuration."""
        program = shutil.which(CLI)
        assert program, "see the fixture"
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "DATABRICKS_HOST": self.sandbox.workspace.host,
            "DATABRICKS_TOKEN": self.sandbox.workspace.token,
            "DATABRICKS_CONFIG_FILE": os.devnull,
            "DATABRICKS_CACHE_ENABLED": "false",
            "DATABRICKS_CLI_DISABLE_TELEMETRY": "1",
            "DATABRICKS_CLI_DISABLE_UPDATE_CHECK": "1",
            "DATABRICKS_AUTH_STORAGE": "plaintext",
            **more,
        }
        command = [program, *arguments]
        return subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=300, check=False
        )

    def succeeds(self, *arguments: str, **more: str) -> str:
        """Run the real CLI, which must exit with 0; gives what it wrote."""
        done = self.cli(*arguments, **more)
        assert done.returncode == 0, f"{arguments}: {done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def jobs(self) -> list[Job]:
        """The jobs of the workspace that a deployment made."""
        return [job for job in self.sandbox.workspace.state.jobs() if job.job_id != INGEST_JOB]

    def sql(self, statement: str, *values: object) -> list[tuple[object, ...]]:
        """Run one statement as the owner of the control table."""
        url = self.sandbox.settings.postgres_url
        with closing(psycopg2.connect(url)) as connection, connection, connection.cursor() as cursor:
            cursor.execute(statement, values or None)
            return fetched(cursor)

    def add_waiting_jobs(self, new: int, repairs: int) -> None:
        """Rows that wait for a new run, and rows whose earlier run failed."""
        for _ in range(new):
            self.sql(_INSERT, INGEST_JOB, None)
        for _ in range(repairs):
            self.sql(_INSERT, INGEST_JOB, self.sandbox.workspace.state.add_run(INGEST_JOB, repairs=1).run_id)

    def statuses(self) -> dict[object, object]:
        """Rows of the control table by status."""
        rows = self.sql("SELECT run_sttus_name, count(*) FROM mm_run_plc GROUP BY 1")
        return {status: count for status, count in rows}  # noqa: C416 rows are tuples of any length to the types

    def secrets(self) -> list[str]:
        """What no output may show."""
        store = self.sandbox.workspace.secrets
        shown = {"database-postgres-schema", "databricks-instance", "refDBname", "refDBuser", "refDBhostname"}
        return [
            store.get(scope, key)
            for scope in store.scopes()
            for key in store.keys(scope)
            if key not in shown | {"databricks-catalog-name", "refDBjdbcURL"}
        ]
