"""The code that the how-to guides show does what they say."""

from __future__ import annotations

import io
import json
import logging
import re
from contextlib import closing
from typing import Any

import dagster as dg
import psycopg2
import pytest
import yaml

from pm_dagster.config.settings import Settings
from pm_dagster.ledger.migrate import initialise
from pm_dagster.logs import ROOT as LOGGER
from pm_dagster.logs import configure, fields
from pm_dagster.orchestration import names
from pm_dagster.sandbox.workspace import LocalWorkspace
from pm_dagster_tests.database import fetched
from pm_dagster_tests.docs import ROOT

_JOB = 1001
_SECOND = """
CREATE TABLE orders (LIKE mm_run_plc INCLUDING ALL);
CREATE VIEW orders_wait_vw AS
SELECT run_id, cntrt_id, file_name, wkf_job_id, wkf_job_run_id FROM orders WHERE run_sttus_name = 'WAITING';
INSERT INTO orders (wkf_job_id, run_sttus_name, cntrt_id, file_name, rgstr_file_time)
VALUES (1001, 'WAITING', 7, 'file.csv', now())"""


def _blocks(page: str, language: str) -> list[str]:
    text = (ROOT / "docs" / "how-to" / page).read_text(encoding="utf-8")
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```", text)


def _executed(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(code, "a page", "exec"), names)  # noqa: S102 it is our own page
    return names


def _sql(url: str, statement: str) -> list[tuple[Any, ...]]:
    with closing(psycopg2.connect(url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(statement)
        return fetched(cursor)


def _second(url: str, workspace: LocalWorkspace) -> dict[str, str]:
    """The second set of the page, made true for this test."""
    _sql(url, _SECOND)
    initialise(Settings(postgres_url=url))
    workspace.state.add_job("ingest", job_id=_JOB, seconds=30.0, max_concurrent_runs=1000)
    return {
        "PM_POSTGRES_URL": url,
        "PM_RUN_TABLE": "orders",
        "PM_WAIT_VIEW": "orders_wait_vw",
        "DATABRICKS_HOST": workspace.host,
        "DATABRICKS_TOKEN": workspace.token,
    }


def test_a_second_code_location_dispatches_the_second_table(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _ = _blocks("two-control-tables.md", "python")
    with LocalWorkspace() as workspace, dg.DagsterInstance.ephemeral() as instance:
        for name, value in _second(database_url, workspace).items():
            monkeypatch.setenv(f"SECOND_{name}", value)
            monkeypatch.setenv(name, "of-the-first")
        job = _executed(code)["defs"].resolve_job_def(names.JOB)
        assert job.execute_in_process(instance=instance).success
    assert _sql(database_url, "SELECT run_sttus_name FROM orders") == [("SCHEDULED",)]


def test_a_program_dispatches_what_the_variables_lead_to(database_url: str) -> None:
    _, code = _blocks("two-control-tables.md", "python")
    with LocalWorkspace() as workspace:
        report = _executed(code)["dispatch"](_second(database_url, workspace))
    assert (report.read, report.scheduled) == (1, 1)


def test_the_yaml_on_the_pages_can_be_read() -> None:
    (workspace,) = _blocks("two-control-tables.md", "yaml")
    assert [set(each) for each in yaml.safe_load(workspace)["load_from"]] == [{"python_module"}, {"python_file"}]
    (instance,) = _blocks("logging.md", "yaml")
    with dg.DagsterInstance.ephemeral(settings=yaml.safe_load(instance)) as made:
        assert made.managed_python_loggers == [LOGGER]


def test_the_lines_of_both_forms_look_as_shown() -> None:
    """But for the time."""
    page = (ROOT / "docs" / "how-to" / "logging.md").read_text(encoding="utf-8")
    (as_json,) = _blocks("logging.md", "json")
    shown = json.loads(as_json)
    for form in (False, True):
        stream = io.StringIO()
        configure("info", as_json=form, stream=stream)
        logging.getLogger(shown["logger"]).info(shown["event"], extra=fields(**shown["fields"]))
        if form:
            assert json.loads(stream.getvalue()) | {"time": shown["time"]} == shown
        else:
            assert stream.getvalue().partition(" ")[2] in page


def test_a_handler_of_ones_own_sees_the_events() -> None:
    (code,) = _blocks("logging.md", "python")
    counter = _executed(code)["counter"]
    try:
        logging.getLogger(f"{LOGGER}.dispatch").info("rescued", extra=fields(run_id=1))
    finally:
        logging.getLogger(LOGGER).removeHandler(counter)
    assert counter.counts == {"rescued": 1}
