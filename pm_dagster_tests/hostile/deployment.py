"""A database of this test's own, a local workspace, and dispatches in this process between them.

Put here: what several tests do. Keep out: expectations, and `pm` as a process (``cli.shell``).
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import psycopg2
from databricks.sdk.core import Config
from psycopg2 import sql

from pm_dagster.config.settings import Settings
from pm_dagster.databricks.runs import SdkRuns
from pm_dagster.dispatch.report import Report
from pm_dagster.dispatch.service import Dispatch
from pm_dagster.ledger.control_plane import PostgresControlPlane
from pm_dagster.sandbox.workspace import LocalWorkspace
from pm_dagster_tests.database import fetched

JOB = 1001
UNKNOWN_JOB = 999_999
_INSERT = """
INSERT INTO mm_run_plc (cntrt_id, run_sttus_name, wkf_job_id, wkf_job_run_id, file_name, rgstr_file_time)
VALUES (7, 'WAITING', %s, %s, %s, now()) RETURNING run_id
"""


@dataclass
class HostileDeployment:
    """The owner's side of a database, and who dispatches from it."""

    database_url: str
    workspace: LocalWorkspace

    def settings(self, **changes: Any) -> Settings:  # noqa: ANN401 settings are of many types
        """Settings without pacing and pauses."""
        unpaced = Settings(
            postgres_url=self.database_url,
            rate_run_now=0.0,
            rate_repair=0.0,
            rate_get_run=0.0,
            call_backoff_seconds=0.0,
            settle_seconds=0.0,
        )
        return replace(unpaced, **changes)

    def dispatch(self, **changes: Any) -> Report:  # noqa: ANN401 as above
        """One whole pass, with these settings changed."""
        settings = self.settings(**changes)
        config = Config(host=self.workspace.host, token=self.workspace.token)
        control = PostgresControlPlane(settings, actor="test")
        try:
            return Dispatch(control, SdkRuns(config, settings), settings).run()
        finally:
            control.end()

    def sql(self, statement: str | sql.Composable, *values: object) -> list[tuple[Any, ...]]:
        """Run one statement as the owner and commit it."""
        connection = psycopg2.connect(self.database_url, client_encoding="UTF8")
        with closing(connection), connection, connection.cursor() as cursor:
            cursor.execute(statement, values or None)
            return fetched(cursor)

    def add(self, *, job_id: int | None = JOB, run: int | None = None, file_name: str = "file.csv") -> int:
        """A waiting row; gives its id."""
        return int(self.sql(_INSERT, job_id, run, file_name)[0][0])

    def status(self, run_id: int) -> str:
        """What the control table says of the row."""
        return str(self.sql("SELECT run_sttus_name::text FROM mm_run_plc WHERE run_id = %s", run_id)[0][0])

    def started(self, run_id: int) -> int:
        """How many Databricks runs carry this row's id."""
        return sum(run.parameters.get("RUN_ID") == str(run_id) for run in self.workspace.state.runs())

    def sent(self, run_id: int) -> dict[str, str]:
        """The parameters with which the row was started, once."""
        (run,) = [run for run in self.workspace.state.runs() if run.parameters.get("RUN_ID") == str(run_id)]
        return dict(run.parameters)

    def events(self, run_id: int) -> list[str]:
        """What the ledger tells of the row: kind and detail of each event."""
        query = """SELECT v.kind || ': ' || v.detail FROM process_manager.event v JOIN process_manager.entry e
                   USING (entry_id) WHERE e.run_id = %s ORDER BY event_id"""
        return [event for (event,) in self.sql(query, run_id)]
