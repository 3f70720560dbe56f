"""Others who hold locks, deadlocks, stricter isolation: the other rows go on, nothing hangs, a reason is told."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

import psycopg2
import pytest
from psycopg2 import sql
from psycopg2.extensions import parse_dsn

from pm_dagster_tests.chaos.boundaries import Boundary, moment
from pm_dagster_tests.chaos.deployment import ChaosDeployment, Moment
from pm_dagster_tests.chaos.finishing import assert_clean, finish, settled, story
from pm_dagster_tests.chaos.wire import Rule, Then
from pm_dagster_tests.ledger.postgres_control_table import eventually

_LOCK_ROW = "SELECT FROM mm_run_plc WHERE run_id = %s FOR UPDATE"
_TABLES = ("mm_run_plc", "process_manager.entry", "process_manager.dispatcher", "process_manager.alembic_version")


@contextmanager
def holding(deployment: ChaosDeployment, statement: str, values: tuple[object, ...] = ()) -> Iterator[None]:
    """An idle transaction in which this was done."""
    with closing(psycopg2.connect(deployment.database_url)) as connection, connection.cursor() as cursor:
        cursor.execute(statement, values or None)
        yield
        connection.rollback()


def test_a_locked_row_waits_and_the_others_go_on(chaos: ChaosDeployment) -> None:
    locked, *free = chaos.add(4)
    with holding(chaos, _LOCK_ROW, (locked,)):
        assert chaos.dispatch().process.exitcode == 0
        assert chaos.statuses() == {locked: "WAITING", **dict.fromkeys(free, "SCHEDULED")}
    finish(chaos)
    assert_clean(chaos, may_fail=())


def test_a_row_locked_while_it_is_sent_is_closed_later(chaos: ChaosDeployment) -> None:
    locked, *free = chaos.add(4)
    keeper = holding(chaos, _LOCK_ROW, (locked,))
    after_claim = moment(Boundary.AFTER_CLAIM, "run-now")
    assert after_claim is not None
    chaos.at(after_claim, keeper.__enter__)
    assert chaos.dispatch().process.exitcode == 0
    assert chaos.statuses() == {locked: "WAITING", **dict.fromkeys(free, "SCHEDULED")}
    assert chaos.sql("SELECT state, reason IS NOT NULL FROM process_manager.entry WHERE open") == [("ACCEPTED", True)]
    keeper.__exit__(None, None, None)
    finish(chaos)
    assert_clean(chaos, may_fail=())


@pytest.mark.parametrize(
    "table", ["mm_run_plc", *(pytest.param(each, marks=pytest.mark.chaos) for each in _TABLES[1:])]
)
def test_a_locked_table_is_told_and_nothing_hangs(chaos: ChaosDeployment, table: str) -> None:
    """Each command at once, so that they wait together."""
    chaos.add(3)
    with holding(chaos, f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"):
        started = [
            chaos.start(*command.split()) for command in ("dispatch", "status", "explain 1", "redrive 1", "init")
        ]
        codes = [process.wait() for process in started]
    for process, code in zip(started, codes, strict=True):
        assert (code == 0 and not process.err) or "another session holds a lock" in process.err, process.err
    assert codes[0] == 1
    finish(chaos)
    assert_clean(chaos, may_fail=())


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_a_database_with_a_stricter_isolation(chaos: ChaosDeployment, level: str) -> None:
    """And an owner who writes to the rows each time before they are locked: our transactions see what was committed."""
    name = sql.Identifier(str(parse_dsn(chaos.database_url)["dbname"]))
    with closing(psycopg2.connect(chaos.database_url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(
            sql.SQL("ALTER DATABASE {} SET default_transaction_isolation = {}").format(name, sql.Literal(level))
        )
    chaos.add(20)
    chaos.add_repair(repairs=1)

    def touch() -> Then:
        chaos.sql("UPDATE mm_run_plc SET msg = 'seen'")
        return "go on"

    # After the snapshot that such a transaction would have, and before it locks the rows: each time anew.
    touched = chaos.front.add(Rule("FOR NO KEY UPDATE SKIP LOCKED", touch, count=10**6))
    done = chaos.dispatch(PM_CONCURRENCY="4")
    assert done.process.exitcode == 0, story(chaos)
    assert touched.fired.is_set()
    assert settled(chaos)
    assert_clean(chaos, may_fail=())


def test_a_deadlock_with_another_writer(chaos: ChaosDeployment) -> None:
    """The closing has the row and wants the entry; the other has the entry and wants the row."""
    (row,) = chaos.add()
    others: list[BaseException | None] = []

    def cross() -> None:
        with closing(psycopg2.connect(chaos.database_url, application_name="crosser")) as connection:
            try:
                with connection, connection.cursor() as cursor:
                    cursor.execute("SELECT FROM process_manager.entry WHERE run_id = %s FOR UPDATE", (row,))
                    held.set()
                    cursor.execute("UPDATE mm_run_plc SET msg = 'crossed' WHERE run_id = %s", (row,))
                others.append(None)
            except psycopg2.errors.DeadlockDetected as error:
                others.append(error)

    held = threading.Event()
    crosser = threading.Thread(target=cross)

    def begin() -> None:
        crosser.start()
        waits = "SELECT pid FROM pg_stat_activity WHERE application_name = 'crosser' AND wait_event_type = 'Lock'"
        eventually(lambda: held.is_set() and chaos.sql(waits) != [], "the other waits for the row")

    chaos.at(Moment("SET state = CASE state WHEN 'ACCEPTED'", "statement", "before"), begin)
    assert chaos.dispatch().process.exitcode == 0, story(chaos)
    crosser.join(30)
    assert len(others) == 1
    finish(chaos)
    assert settled(chaos)
    assert_clean(chaos, may_fail=())
