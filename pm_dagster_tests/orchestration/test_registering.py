"""A run is known to the ledger from its beginning, and what fails beside the work is told in the run's log."""

from __future__ import annotations

from contextlib import closing
from uuid import uuid4

import dagster as dg
import psycopg2
import pytest

from pm_dagster.definitions import build_definitions
from pm_dagster.errors import ControlPlaneUnavailable
from pm_dagster.orchestration import names
from pm_dagster.orchestration.resources import ControlTable, ControlTableResource
from pm_dagster.sandbox.workspace import LocalWorkspace
from pm_dagster_tests.orchestration.conftest import CodeLocation

_DISPATCHERS = "SELECT actor, ended_at IS NULL FROM process_manager.dispatcher"


def _logged(instance: dg.DagsterInstance, run_id: str) -> str:
    return "\n".join(entry.user_message for entry in instance.all_logs(run_id) if int(entry.level) >= 30)


def test_a_run_is_a_dispatcher_before_it_reads_anything(
    code_location: CodeLocation, ledger_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PM_POSTGRES_URL", ledger_url)

    def dispatchers() -> list[tuple[object, ...]]:
        with closing(psycopg2.connect(ledger_url)) as connection, connection.cursor() as cursor:
            cursor.execute(_DISPATCHERS)
            return cursor.fetchall()

    @dg.op
    def look(control_table: dg.ResourceParam[ControlTable]) -> None:
        assert control_table is not None
        assert dispatchers() == [(names.actor(run_id), True)]

    @dg.job(resource_defs={"control_table": ControlTableResource()}, executor_def=dg.in_process_executor)
    def only_looks() -> None:
        look()

    run_id = str(uuid4())
    assert only_looks.execute_in_process(instance=code_location.instance, run_id=run_id).success
    assert dispatchers() == [(names.actor(run_id), False)]


def test_a_whole_dispatch_is_one_dispatcher(
    code_location: CodeLocation, ledger_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LocalWorkspace() as workspace:
        for name, value in {
            "PM_POSTGRES_URL": ledger_url,
            "DATABRICKS_HOST": workspace.host,
            "DATABRICKS_TOKEN": workspace.token,
        }.items():
            monkeypatch.setenv(name, value)
        job = build_definitions().resolve_job_def(names.JOB)
        result = job.execute_in_process(instance=code_location.instance)
    assert result.success
    with closing(psycopg2.connect(ledger_url)) as connection, connection.cursor() as cursor:
        cursor.execute(_DISPATCHERS)
        assert cursor.fetchall() == [(names.actor(result.run_id), False)]


def test_a_run_that_cannot_register_goes_on_to_the_op_which_is_retried(
    code_location: CodeLocation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PM_POSTGRES_URL", "postgresql://pm:secret@127.0.0.1:1/nowhere")

    @dg.op
    def work(control_table: dg.ResourceParam[ControlTable]) -> None:
        assert control_table is not None

    @dg.job(resource_defs={"control_table": ControlTableResource()}, executor_def=dg.in_process_executor)
    def only_works() -> None:
        work()

    result = only_works.execute_in_process(instance=code_location.instance)
    assert result.success
    logged = _logged(code_location.instance, result.run_id)
    assert "This run is not registered in the ledger yet: the database does not answer" in logged
    assert "secret" not in logged


def test_rows_that_could_not_be_closed_on_the_way_are_told_and_closed_at_the_end(code_location: CodeLocation) -> None:
    code_location.database.add(1)
    code_location.faults["close"] = [ControlPlaneUnavailable("the database restarts")]
    result = code_location.dispatch()
    assert result.success
    assert code_location.database.statuses() == {1: "SCHEDULED"}
    assert 'closing put off entries=1 error="the database restarts"' in _logged(code_location.instance, result.run_id)
