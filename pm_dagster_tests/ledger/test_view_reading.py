"""A view that takes too long, that somebody cancels, or whose table is locked: named, with the limit, and retried."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

import psycopg2
import pytest

from pm_dagster.errors import ControlPlaneUnavailable, ProcessManagerError
from pm_dagster.ledger import reads as history
from pm_dagster.ledger.connection import connect, transaction, translated
from pm_dagster.ledger.control_plane import PostgresControlPlane
from pm_dagster.ledger.waiting_rows import WaitingAsText
from pm_dagster_tests.ledger.postgres_control_table import PostgresControlTable, eventually

_SLOW = """
CREATE FUNCTION slow(bigint) RETURNS boolean LANGUAGE plpgsql VOLATILE AS
    $$BEGIN PERFORM pg_sleep({seconds}); RETURN true; END$$;
DO $$DECLARE text text := pg_get_viewdef('mm_run_wait_vw'::regclass); BEGIN
    EXECUTE 'CREATE VIEW slow_vw AS SELECT * FROM (' || rtrim(text, ';') || ') AS v WHERE slow(v.run_id)'; END$$
"""
_NAMED = r"the view public\.slow_vw \(PM_WAIT_VIEW\) takes longer to read than the 1 s of PM_VIEW_TIMEOUT_SECONDS"


def _slow(table: PostgresControlTable, seconds: float) -> int:
    row = table.add()
    table.ask(_SLOW.format(seconds=seconds))
    return row


def _readers(table: PostgresControlTable, row: int, **settings: object) -> dict[str, Callable[[], object]]:
    mine = replace(table.settings, wait_view="slow_vw", **settings)  # type: ignore[arg-type]
    control = PostgresControlPlane(mine, "test")
    table._made.append(control)

    def shown() -> bool:
        with transaction(mine) as connection:
            return history.in_view(connection, mine, row)

    return {
        "waiting": lambda: control.waiting(10),
        "backlog": control.backlog,
        "untakeable": lambda: control.untakeable(10, [row]),
        "explain": shown,
    }


@pytest.mark.slow
def test_every_reading_names_view_and_limit(table: PostgresControlTable) -> None:
    row = _slow(table, 30)
    for read in _readers(table, row, view_timeout_seconds=1.0).values():
        with pytest.raises(ControlPlaneUnavailable, match=_NAMED):
            read()


def test_a_limit_of_its_own_is_not_that_of_the_other_statements(table: PostgresControlTable) -> None:
    """One longer than that lets a slow view through, and what is written in the same transaction has its own again."""
    row = _slow(table, 1.3)
    readers = _readers(table, row, view_timeout_seconds=100.0)
    assert [job.run_id for job in readers["waiting"]()] == [row]  # type: ignore[attr-defined]
    control = table._made[-1]
    limits: list[str] = []

    def look() -> None:
        with control._session._connection.cursor() as cursor:  # type: ignore[union-attr]
            cursor.execute("SHOW statement_timeout")
            limits.append(cursor.fetchone()[0])  # type: ignore[index]

    from pm_dagster.ledger.connection import longest_transaction  # noqa: PLC0415
    from pm_dagster.ledger.waiting_rows import reading_view  # noqa: PLC0415

    def work(cursor: psycopg2.extensions.cursor) -> None:
        with reading_view(cursor, control._settings):
            look()
        look()

    control._session.read(work)
    assert limits == ["100s", "1min"]
    assert longest_transaction(control._settings) == 110


def test_the_clusters_read_has_the_same_limit(table: PostgresControlTable) -> None:
    text = WaitingAsText(replace(table.settings, view_timeout_seconds=100.0))
    try:
        assert "'statement_timeout', '100s'" in text.read(1).session
    finally:
        text.end()


def test_what_its_role_says_does_not_matter(table: PostgresControlTable) -> None:
    row = _slow(table, 1.3)
    (name,) = table.ask("SELECT current_database()")[0]
    table.ask(f"ALTER DATABASE {name} SET statement_timeout = '200ms'")
    assert len(_readers(table, row)["waiting"]()) == 1  # type: ignore[arg-type]


def test_somebody_who_cancels_is_told_apart_from_the_limit(table: PostgresControlTable) -> None:
    row = _slow(table, 30)
    caught: list[ProcessManagerError] = []
    mine = replace(table.settings, wait_view="slow_vw")

    def read() -> None:
        try:
            with transaction(mine) as connection:
                history.in_view(connection, mine, row)
        except ProcessManagerError as error:
            caught.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    asleep = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
    eventually(lambda: bool(table.ask(asleep)), "it is read")
    table.ask("SELECT pg_cancel_backend(%s)", table.ask(asleep)[0][0])
    thread.join()
    assert isinstance(caught[0], ControlPlaneUnavailable)
    assert "the view public.slow_vw (PM_WAIT_VIEW) was cancelled after" in str(caught[0])
    assert "pg_cancel_backend" in str(caught[0])


def test_a_table_under_the_view_that_is_locked_names_the_view(table: PostgresControlTable) -> None:
    row = _slow(table, 0)
    with closing(psycopg2.connect(table.url)) as owner, owner.cursor() as cursor:
        cursor.execute("LOCK TABLE mm_run_plc IN ACCESS EXCLUSIVE MODE")
        mine = replace(table.settings, wait_view="slow_vw")
        with (
            pytest.raises(ControlPlaneUnavailable, match=r"view public\.slow_vw .* holds a lock"),
            transaction(mine) as ours,
        ):
            history.in_view(ours, mine, row)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("57014", "by its time-out, or by somebody"),
        ("40001", "asks for the transaction once more"),
        ("40P01", "asks for the transaction once more"),
        ("25P04", "the database does not answer"),
        ("55P03", "another session holds a lock"),
    ],
)
def test_other_statements_say_what_can_be_known(table: PostgresControlTable, code: str, words: str) -> None:
    raising = f"DO $$BEGIN RAISE EXCEPTION USING MESSAGE = 'x', ERRCODE = '{code}'; END$$"
    with (
        closing(connect(table.settings)) as connection,
        connection.cursor() as cursor,
        pytest.raises(ControlPlaneUnavailable, match=words),
        translated(),
    ):
        cursor.execute(raising)
