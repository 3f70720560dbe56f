"""Settings are values: two control tables and two workspaces in one process, at the same time."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest

from pm_dagster.config.credentials import resolved
from pm_dagster.config.masking import scrubbed
from pm_dagster.config.settings import settings_from
from pm_dagster.databricks.runs import SdkRuns
from pm_dagster.databricks.sign_in import signed_in
from pm_dagster.dispatch.report import Report
from pm_dagster.dispatch.service import Dispatch
from pm_dagster.ledger.control_plane import PostgresControlPlane
from pm_dagster.ledger.migrate import initialise
from pm_dagster.sandbox.workspace import LocalWorkspace
from pm_dagster_tests.database import fetched

_JOB = 1001
_SECOND = """
CREATE TABLE second (LIKE mm_run_plc INCLUDING ALL);
CREATE VIEW second_vw AS
SELECT run_id, cntrt_id, file_name, wkf_job_id, wkf_job_run_id FROM second WHERE run_sttus_name = 'QUEUED'"""
_ADD = """
INSERT INTO {table} (wkf_job_id, run_sttus_name, cntrt_id, file_name, rgstr_file_time)
SELECT %s, %s, 7, %s || n, now() FROM generate_series(1, %s) n"""


def _sql(url: str, statement: str, *values: object) -> list[tuple[object, ...]]:
    with closing(psycopg2.connect(url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(statement, values or None)
        return fetched(cursor)


def _dispatch(variables: Mapping[str, str]) -> Report:
    """As an entry does it: variables to values once, and from then on values."""
    environment = resolved(variables).environment
    settings = settings_from(environment)
    control = PostgresControlPlane(settings, "one of two")
    try:
        return Dispatch(control, SdkRuns(signed_in(environment, settings), settings), settings).run()
    finally:
        control.end()


def _variables(url: str, workspace: LocalWorkspace, file: Path, **more: str) -> dict[str, str]:
    file.write_text(workspace.token)
    host = {"DATABRICKS_HOST": workspace.host, "DATABRICKS_TOKEN": file.as_uri()}
    return {"PM_POSTGRES_URL": url, "PM_RATE_RUN_NOW": "0", **host, **more}


def _sent(workspace: LocalWorkspace) -> set[str]:
    return {run.parameters["FILE_NAME"] for run in workspace.state.runs()}


def test_each_dispatches_its_own_rows_into_its_own_workspace(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PM_RUN_TABLE", "PM_WAIT_VIEW", "PM_SCHEMA", "PM_POSTGRES_URL", "PGDATABASE", "PGHOST"):
        monkeypatch.setenv(name, "of-the-process")
    monkeypatch.setenv("DATABRICKS_HOST", "https://of-the-process.invalid")
    monkeypatch.setenv("DATABRICKS_TOKEN", "of-the-process")
    _sql(database_url, _SECOND)
    _sql(database_url, _ADD.format(table="mm_run_plc"), _JOB, "WAITING", "first-", 20)
    _sql(database_url, _ADD.format(table="second"), _JOB, "QUEUED", "second-", 30)
    with LocalWorkspace() as one, LocalWorkspace() as two:
        for workspace in (one, two):
            workspace.state.add_job("ingest", job_id=_JOB, seconds=30.0, max_concurrent_runs=1000)
        first = _variables(database_url, one, tmp_path / "one")
        names = {"PM_RUN_TABLE": "second", "PM_WAIT_VIEW": "second_vw", "PM_STATUS_WAITING": "QUEUED"}
        second = _variables(database_url, two, tmp_path / "two", **names)
        for variables in (first, second):
            initialise(settings_from(variables))
        with ThreadPoolExecutor(2) as pool:
            reports = list(pool.map(_dispatch, (first, second)))

        assert [(report.read, report.scheduled) for report in reports] == [(20, 20), (30, 30)]
        assert _sent(one) == {f"first-{number}" for number in range(1, 21)}
        assert _sent(two) == {f"second-{number}" for number in range(1, 31)}
        for table, count in (("mm_run_plc", 20), ("second", 30)):
            found = _sql(database_url, f"SELECT run_sttus_name, count(*) FROM {table} GROUP BY 1")  # noqa: S608
            assert found == [("SCHEDULED", count)]
        assert scrubbed(f"{one.token} {two.token}") == "*** ***"
