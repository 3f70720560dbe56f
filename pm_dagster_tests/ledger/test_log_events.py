"""What the ledger does out of the ordinary is logged: the event, and what it is about."""

from __future__ import annotations

import logging

import pytest
from psycopg2.extensions import cursor as Cursor  # noqa: N812 the driver's class has a lower-case name

from pm_dagster.ledger import closing
from pm_dagster.ledger.connection import DatabaseIsReadOnly
from pm_dagster_tests.contracts.steps import claim_one, seen, send
from pm_dagster_tests.ledger.postgres_control_table import PostgresControlTable

_REFUSES = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.run_id = {run_id} AND {which} THEN RAISE EXCEPTION 'not this one'; END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER refuse BEFORE UPDATE ON mm_run_plc FOR EACH ROW EXECUTE FUNCTION refuse()
"""
_SLOW = """
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM pg_sleep(0.4); RETURN NEW; END $$;
CREATE TRIGGER slow BEFORE UPDATE ON mm_run_plc FOR EACH ROW EXECUTE FUNCTION slow()
"""


@pytest.fixture(autouse=True)
def all_events(caplog: pytest.LogCaptureFixture) -> None:
    """Every event of the ledger is captured."""
    caplog.set_level(logging.DEBUG, "pm_dagster.ledger")


def _told(caplog: pytest.LogCaptureFixture, event: str) -> list[tuple[str, dict[str, object]]]:
    """Level and fields of each record of an event."""
    found = [record for record in caplog.records if record.getMessage() == event]
    return [(record.levelname, record.__dict__["fields"]) for record in found]


def test_a_commit_whose_answer_was_lost_is_found_done(
    table: PostgresControlTable, caplog: pytest.LogCaptureFixture
) -> None:
    control = table.dispatcher()
    control.register()
    done: list[str] = []

    def work(cursor: Cursor) -> str:
        done.append("once")
        pid = cursor.connection.get_backend_pid()
        cursor.connection.commit()
        # The write is committed; the COMMIT that the session sends next is answered by nobody.
        cursor.execute("SELECT 1")
        table.ask("SELECT pg_terminate_backend(%s)", pid)
        return "given"

    assert control._session.write(work, "a write") == "given"
    assert done == ["once"]
    ((level, about),) = _told(caplog, "write found committed")
    assert level == "INFO"
    assert about["dispatcher"] == control._session.names["me"]
    assert isinstance(about["write"], int)


def test_a_batch_that_the_table_refuses_is_halved(
    table: PostgresControlTable, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [table.add(age=age) for age in (30.0, 20.0, 10.0)]
    control = table.dispatcher()
    entries = control.claim(seen(control))
    for entry in entries:
        send(control, entry)
    table.ask(_REFUSES.format(run_id=rows[0], which="true"))
    closed = control.close([entry.entry_id for entry in entries])
    assert {item.run_id for item in closed} == set(rows[1:])
    halved = _told(caplog, "batch of a closing halved")
    assert halved
    assert halved[0][0] == "INFO"
    assert halved[0][1]["rows"] == 3
    assert "not this one" in str(halved[0][1]["error"])
    ((level, about),) = _told(caplog, "control table refuses a row")
    assert level == "WARNING"
    assert about["run_id"] == rows[0]
    assert "not this one" in str(about["reason"])


def test_a_row_that_takes_status_and_run_alone(table: PostgresControlTable, caplog: pytest.LogCaptureFixture) -> None:
    row = table.add()
    control = table.dispatcher()
    entry = claim_one(control)
    send(control, entry)
    table.ask(_REFUSES.format(run_id=row, which="NEW.msg IS DISTINCT FROM OLD.msg"))
    control.close([entry.entry_id])
    assert table.status(row) == "SCHEDULED"
    ((level, about),) = _told(caplog, "row closed without link and message")
    assert (level, about["run_id"]) == ("INFO", row)


def test_a_database_that_takes_no_writes(table: PostgresControlTable, caplog: pytest.LogCaptureFixture) -> None:
    (name,) = table.ask("SELECT current_database()")[0]
    table.ask(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    with pytest.raises(DatabaseIsReadOnly):
        table.dispatcher().register()
    told = _told(caplog, "database is read-only")
    assert told
    assert {level for level, _ in told} == {"WARNING"}
    assert "default_transaction_read_only" in str(told[0][1]["error"])


def test_a_rehearsal_that_is_skipped(table: PostgresControlTable, caplog: pytest.LogCaptureFixture) -> None:
    table.add()
    claim_one(table.dispatcher(rehearse=False))
    assert _told(caplog, "rehearsal skipped") == [("INFO", {"rows": 1})]
    table.add()
    claim_one(table.dispatcher())
    assert len(_told(caplog, "rehearsal skipped")) == 1


def test_a_rehearsal_that_puts_a_row_off(table: PostgresControlTable, caplog: pytest.LogCaptureFixture) -> None:
    row = table.add()
    table.ask(_REFUSES.format(run_id=row, which="true"))
    entry = claim_one(table.dispatcher())
    ((level, about),) = _told(caplog, "row not started")
    assert (level, about["run_id"], about["entry"]) == ("WARNING", row, entry.entry_id)
    assert "not this one" in str(about["reason"])


def test_a_table_that_is_too_slow_for_many_rows_at_once(
    table: PostgresControlTable, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closing, "_LONGEST_REHEARSAL_SECONDS", 0.2)
    monkeypatch.setattr(closing, "_LONGEST_TOGETHER_SECONDS", 0.2)
    for _ in range(2):
        table.add()
    table.ask(_SLOW)
    control = table.dispatcher()
    entries = control.claim(seen(control))
    assert _told(caplog, "table too slow, one row rehearsed for all") == [("WARNING", {"rows": 2})]
    for entry in entries:
        send(control, entry)
    control.close([entry.entry_id for entry in entries], lambda: False)
    assert _told(caplog, "table too slow, rows closed one by one") == [("WARNING", {"rows": 2})]
    assert _told(caplog, "rows left to the next dispatch") == [("WARNING", {"rows": 1})]


def test_a_row_that_nobody_can_take(table: PostgresControlTable, caplog: pytest.LogCaptureFixture) -> None:
    table.loosen_view()
    row = table.add(status="waiting")
    (found,) = table.dispatcher().untakeable(10)
    assert _told(caplog, "row cannot be taken") == [("INFO", {"run_id": row, "reason": found.reason})]
