"""What a session logs: its connections, its lock or lease, where the ledger is, its end; and no secret."""

from __future__ import annotations

import logging
from contextlib import closing
from typing import Any

import psycopg2
import pytest
from psycopg2.extensions import cursor as Cursor  # noqa: N812 the driver's class has a lower-case name

from pm_dagster.errors import ControlPlaneUnavailable
from pm_dagster.ledger import session
from pm_dagster.ledger.control_plane import PostgresControlPlane
from pm_dagster_tests.ledger.postgres_control_table import PostgresControlTable
from pm_dagster_tests.ledger.test_liveness import cut

_SECRET = "a-password-of-this-test"


@pytest.fixture(autouse=True)
def _everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "pm_dagster")


def _dispatcher(table: PostgresControlTable, **settings: Any) -> PostgresControlPlane:  # noqa: ANN401 settings are of many types
    url = f"{table.url}&password={_SECRET}"
    return table.dispatcher(actor="logged", **{"postgres_url": url, **settings})


def _events(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str, dict[str, Any]]]:
    """Level, name and fields of each event of the session so far."""
    records = [record for record in caplog.records if record.name == session.__name__]
    return [(record.levelname, record.message, record.__dict__["fields"]) for record in records]


def _names(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [name for _, name, _ in _events(caplog)]


@pytest.mark.parametrize("liveness", ["lock", "lease"])
def test_a_quiet_session(table: PostgresControlTable, caplog: pytest.LogCaptureFixture, liveness: str) -> None:
    control = _dispatcher(table, liveness=liveness)
    control.register()
    control.waiting(1)
    control.end()
    ((database,),) = table.ask("SELECT current_database()")
    ((environment,),) = table.ask("SELECT environment::text FROM process_manager.identity")
    ((me,),) = table.ask("SELECT dispatcher_id FROM process_manager.dispatcher")
    (connected, *others) = _events(caplog)
    assert connected[:2] == ("DEBUG", "connected")
    assert (connected[2]["dispatcher"], connected[2]["database"]) == (None, database)
    assert others == [
        ("DEBUG", "ledger found", {"environment": environment}),
        ("DEBUG", "registered", {"dispatcher": me, "actor": "logged", "liveness": liveness}),
        ("DEBUG", "session ended", {"dispatcher": me}),
    ]


def test_a_connection_that_is_cut_is_lost_and_reopened(
    table: PostgresControlTable, caplog: pytest.LogCaptureFixture
) -> None:
    control = _dispatcher(table)
    control.register()
    caplog.clear()
    cut(table, control)
    control.waiting(1)
    ((me,),) = table.ask("SELECT dispatcher_id FROM process_manager.dispatcher")
    lost, reopened, *others = _events(caplog)
    assert (lost[:2], lost[2]["dispatcher"]) == (("WARNING", "connection lost"), me)
    assert "the database does not answer: " in lost[2]["error"]
    assert (reopened[:2], reopened[2]["dispatcher"]) == (("INFO", "connection reopened"), me)
    assert [name for _, name, _ in others] == ["ledger found", "registered"]
    retried = [record.__dict__["fields"] for record in caplog.records if record.message == "retrying"]
    assert [(each["what"], each["attempt"]) for each in retried] == [("a transaction", 2)]


def test_our_lost_connection_that_the_server_still_has_is_ended(
    table: PostgresControlTable, caplog: pytest.LogCaptureFixture
) -> None:
    control = _dispatcher(table)
    control.register()
    lost = control._session._connection
    control._session._connection = None
    control.waiting(1)
    assert ("INFO", "former session ended") in [event[:2] for event in _events(caplog)]
    assert lost is not None
    lost.close()


def test_an_end_that_does_not_get_through_is_told(
    table: PostgresControlTable, caplog: pytest.LogCaptureFixture
) -> None:
    control = _dispatcher(table)
    control.register()
    cut(table, control)
    control.end()
    assert _names(caplog)[-2:] == ["connection lost", "session not ended"]


def test_a_heartbeat_that_does_not_get_through_is_told(
    table: PostgresControlTable, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_LONGEST_UNSEEN_SECONDS", 0.0)
    control = _dispatcher(table)
    control.register()
    with closing(psycopg2.connect(table.url)) as owner, owner.cursor() as cursor:
        cursor.execute("LOCK process_manager.dispatcher IN ACCESS EXCLUSIVE MODE")
        control._session._longest = 0.2
        control.heartbeat()
    assert ("WARNING", "heartbeat failed") in [event[:2] for event in _events(caplog)]


def test_a_write_whose_commit_was_lost_is_found(table: PostgresControlTable, caplog: pytest.LogCaptureFixture) -> None:
    control = _dispatcher(table)
    control.register()
    tries = 0

    def work(cursor: Cursor) -> str:
        nonlocal tries
        tries += 1
        # The server commits, and its answer is lost.
        cursor.execute("COMMIT")
        cursor.connection.close()
        return "done"

    assert control._session.write(work, "a write", lambda _, given: f"{given}, found") == "done, found"
    assert tries == 1
    assert ("INFO", "write found committed") in [event[:2] for event in _events(caplog)]


def test_a_ledger_that_changed_places_is_told(table: PostgresControlTable, caplog: pytest.LogCaptureFixture) -> None:
    table.ask("UPDATE process_manager.identity SET made_database = 'elsewhere', made_hosts = '{elsewhere}'")
    _dispatcher(table).waiting(1)
    (told,) = [event for event in _events(caplog) if event[1] == "ledger elsewhere"]
    assert told[0] == "WARNING"
    assert "the ledger was made in" in told[2]["question"]


def test_no_event_holds_the_password(table: PostgresControlTable, caplog: pytest.LogCaptureFixture) -> None:
    control = _dispatcher(table)
    control.register()
    cut(table, control)
    control.waiting(1)
    control.end()
    with pytest.raises(ControlPlaneUnavailable):
        _dispatcher(table, postgres_url=f"host=127.0.0.1 port=1 dbname=x password={_SECRET}").waiting(1)
    assert len(caplog.records) > 5
    assert _SECRET not in "".join(str(record.__dict__) for record in caplog.records)
