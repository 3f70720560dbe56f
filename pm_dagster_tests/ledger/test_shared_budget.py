"""The record that dispatchers share, in Postgres: a dispatch goes on without it, and says so once."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace

import psycopg2
import pytest
from psycopg2.extensions import make_dsn

from pm_dagster.config.settings import Settings
from pm_dagster.dispatch.model import Outcome
from pm_dagster.dispatch.service import Dispatch
from pm_dagster.errors import ConfigurationError, ControlPlaneUnavailable
from pm_dagster_tests.fakes.runs import InMemoryRuns
from pm_dagster_tests.ledger.postgres_control_table import PostgresControlTable

_JOB = 1001
_LOCK = "SELECT FROM process_manager.api_budget FOR UPDATE"


def dispatched(table: PostgresControlTable, rows: int = 3) -> float:
    """Dispatch so many rows; gives the seconds that it took."""
    for _ in range(rows):
        table.add()
    settings = replace(table.settings, concurrency=4)
    began = time.monotonic()
    report = Dispatch(table.dispatcher(), InMemoryRuns(jobs=(_JOB,)), settings).run()
    assert [row.outcome for row in report.rows] == [Outcome.ACCEPTED] * rows
    assert report.scheduled == rows
    return time.monotonic() - began


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [str(r.__dict__["fields"]["error"]) for r in caplog.records if r.getMessage() == "budget not shared"]


@contextmanager
def locked(table: PostgresControlTable) -> Iterator[None]:
    """Somebody hangs while the record is theirs."""
    with closing(psycopg2.connect(table.url)) as connection, connection.cursor() as cursor:
        cursor.execute(_LOCK)
        yield


def test_a_dispatch_leaves_what_it_did(table: PostgresControlTable) -> None:
    dispatched(table)
    ((workspace, record),) = table.ask("SELECT workspace, record FROM process_manager.api_budget")
    assert workspace == "workspace.example"
    assert len(record["calls"]["run-now"]["starts"]) == 3
    assert (record["seen"], record["whole"]) == ({}, ["", 0.0])


def test_a_second_dispatch_begins_at_once(table: PostgresControlTable) -> None:
    """The first one left the budget when it was done, a second after it had taken the whole of it or earlier."""
    dispatched(table)
    assert dispatched(table) < 0.9


def test_a_record_that_is_locked_holds_up_no_dispatch(
    table: PostgresControlTable, caplog: pytest.LogCaptureFixture
) -> None:
    dispatched(table)
    with locked(table):
        assert dispatched(table) < 3.0
    (error,) = told(caplog)
    assert "another session holds a lock" in error
    caplog.clear()
    dispatched(table)
    assert told(caplog) == []


@pytest.mark.parametrize(
    "change",
    ["DROP TABLE process_manager.api_budget", "ALTER TABLE process_manager.api_budget RENAME record TO other"],
)
def test_without_a_record_a_dispatch_goes_on(
    table: PostgresControlTable, caplog: pytest.LogCaptureFixture, change: str
) -> None:
    table.ask(change)
    dispatched(table)
    assert len(told(caplog)) == 1


@pytest.mark.parametrize("record", ["null", "[]", "5", '{"form": 0}', '{"form": 1}', '{"form": 1, "calls": 3}'])
def test_a_record_of_another_form_is_begun_anew(
    table: PostgresControlTable, caplog: pytest.LogCaptureFixture, record: str
) -> None:
    table.ask(
        "INSERT INTO process_manager.api_budget (workspace, record) VALUES ('workspace.example', %s::jsonb)", record
    )
    dispatched(table)
    assert told(caplog) == []
    ((form, by),) = table.ask("SELECT record->>'form', record->>'by' FROM process_manager.api_budget")
    assert form == "1"
    assert by


def test_whoever_may_not_is_told_so(table: PostgresControlTable) -> None:
    table.ask("DROP TABLE process_manager.api_budget")
    with pytest.raises(ConfigurationError, match="api_budget"):
        table.dispatcher().share_budget("w", lambda _told, _now: {})


def test_a_standby_has_no_budget(table: PostgresControlTable) -> None:
    url = make_dsn(table.url, options="-c default_transaction_read_only=on")
    with pytest.raises(ControlPlaneUnavailable, match="read-only"):
        table.dispatcher(postgres_url=url).share_budget("w", lambda _told, _now: {})


def test_whoever_hangs_with_the_record_loses_it(table: PostgresControlTable) -> None:
    """A process that is frozen between reading and writing keeps the others waiting for seconds at most."""
    hangs, go_on = threading.Event(), threading.Event()

    def hang(_told: object, _now: float) -> dict[str, object]:
        hangs.set()
        go_on.wait(30)
        return {}

    frozen, other = table.dispatcher(), table.dispatcher()
    thread = threading.Thread(target=_ignore, args=(frozen, hang))
    thread.start()
    try:
        assert hangs.wait(10)
        began = time.monotonic()
        assert not _shared(other)
        while not _shared(other):
            assert time.monotonic() < began + 10
    finally:
        go_on.set()
        thread.join()


def _ignore(control: object, change: object) -> None:
    with pytest.raises(ControlPlaneUnavailable):
        control.share_budget("w", change)  # type: ignore[attr-defined]


def _shared(control: object) -> bool:
    try:
        return control.share_budget("w", lambda _told, _now: {"mine": 1})  # type: ignore[attr-defined, no-any-return]
    except ControlPlaneUnavailable:
        return False


def test_through_a_lease_it_is_the_same(table: PostgresControlTable) -> None:
    table.settings = replace(table.settings, liveness="lease")
    dispatched(table)
    ((record,),) = table.ask("SELECT record FROM process_manager.api_budget")
    assert len(record["calls"]["run-now"]["starts"]) == 3


def test_the_log_is_quiet_where_all_is_well(table: PostgresControlTable, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    dispatched(table)
    assert {r.getMessage() for r in caplog.records} & {
        "budget shared",
        "budget not shared",
        "throttled elsewhere",
    } == set()
    assert Settings().rate_run_now
