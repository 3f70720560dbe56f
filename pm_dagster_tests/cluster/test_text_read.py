"""The read as text gives another client, whatever its session's habits, exactly the rows that the driver gets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import psycopg2
import pytest
from psycopg2.extensions import UNICODE, register_type

from pm_dagster.config.settings import Settings, settings_from
from pm_dagster.dispatch.waiting_job import RawRow, sort_rows
from pm_dagster.ledger.control_plane import PostgresControlPlane
from pm_dagster.ledger.waiting_rows import TextRead, WaitingAsText
from pm_dagster_tests.cluster import nasty_rows
from pm_dagster_tests.ledger.postgres_control_table import PostgresControlTable

_HABITS = """
SET TimeZone = 'Asia/Kathmandu'; SET DateStyle = 'German, DMY'; SET IntervalStyle = 'sql_standard';
SET extra_float_digits = 3; SET bytea_output = 'escape'"""


@pytest.fixture
def settings(ledger_url: str) -> Settings:
    """Settings for the view with every type."""
    nasty_rows.lay_out(ledger_url)
    return replace(settings_from(nasty_rows.SETTINGS), postgres_url=ledger_url)


@pytest.fixture
def driver(settings: Settings) -> Iterator[PostgresControlPlane]:
    """The driver's side."""
    control = PostgresControlPlane(settings, "test")
    yield control
    control.end()


def _another_client(url: str, read: TextRead) -> list[tuple[object, ...]]:
    """Every value as the server wrote it, in a session with other habits, in no order."""
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(_HABITS)
        cursor.execute(read.session)
        # As Spark 3.5 wraps it: once for the names, once for the rows.
        cursor.execute(f"SELECT * FROM ({read.query}) spark_gen_alias WHERE 1=0")  # noqa: S608 our own statement
        names = [column.name for column in cursor.description or ()]
        assert len(set(names)) == len(names)
        for type_ in {column.type_code for column in cursor.description or ()}:
            register_type(psycopg2.extensions.new_type((type_,), "AS_IT_IS", UNICODE), cursor)
        cursor.execute(f"SELECT * FROM ({read.query}) spark_gen_alias")  # noqa: S608 our own statement
        return cursor.fetchall()[::-1]


def _by_text(settings: Settings, limit: int) -> list[RawRow]:
    waiting = WaitingAsText(settings)
    try:
        read = waiting.read(limit)
        return waiting.rows(read, _another_client(settings.postgres_url, read))
    finally:
        waiting.end()


@pytest.mark.parametrize("limit", [100, 2, 1])
def test_the_same_rows_in_the_same_order(settings: Settings, driver: PostgresControlPlane, limit: int) -> None:
    expected = driver.waiting(limit)
    assert len(expected) == min(limit, 5)
    found = _by_text(settings, limit)
    # repr as well: NaN is not equal to itself, and 1 is equal to 1.0 and to True.
    assert repr(_comparable(found)) == repr(_comparable(expected))


def _comparable(rows: list[RawRow]) -> list[RawRow]:
    return [replace(row, parameters={k: _shown(v) for k, v in row.parameters.items()}) for row in rows]


def _shown(value: object) -> object:
    return bytes(value) if isinstance(value, memoryview) else value


def test_an_empty_view(settings: Settings) -> None:
    assert _by_text(replace(settings, status_waiting="NOTHING"), 10) == []


def test_without_order_and_parameters_the_run_id_decides(settings: Settings) -> None:
    bare = replace(settings, column_order="", job_parameters=())
    rows = _by_text(bare, 3)
    assert [row.run_id for row in rows] == [3, 4, 5]
    assert [row.since for row in rows] == [None, None, None]


def test_a_client_that_only_read_is_no_dispatcher(settings: Settings) -> None:
    _by_text(settings, 10)
    with closing(psycopg2.connect(settings.postgres_url)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM process_manager.dispatcher")
        assert cursor.fetchone() == (0,)


def test_the_other_session_only_reads(settings: Settings) -> None:
    waiting = WaitingAsText(settings)
    read = waiting.read(1)
    waiting.end()
    with closing(psycopg2.connect(settings.postgres_url)) as connection, connection.cursor() as cursor:
        cursor.execute(read.session)
        connection.commit()
        with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction):
            cursor.execute("DELETE FROM mm_run_plc")


def test_rows_backing_off_or_in_another_dispatchers_hand_are_left_out(ledger_url: str) -> None:
    table = PostgresControlTable(ledger_url)
    first, second = table.add(age=10), table.add(age=5)
    control = table.dispatcher()
    jobs = [row for row in control.waiting(10) if row.run_id == first]
    control.claim(sort_rows(jobs)[0])
    assert [row.run_id for row in _by_text(table.settings, 10)] == [second]
    table.leave()
