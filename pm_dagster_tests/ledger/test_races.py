"""Two at the same rows: nothing is claimed twice, nothing waits for a lock, nothing is closed wrongly."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from threading import Barrier

import psycopg2
import pytest

from pm_dagster.dispatch.in_doubt import intent_committed
from pm_dagster.dispatch.model import Entry, EntryState, Outcome
from pm_dagster.dispatch.ports import Change, ControlPlane, Event
from pm_dagster.dispatch.waiting_job import WaitingJob
from pm_dagster.ledger.ledger_sql import LOCK_RUNS
from pm_dagster_tests.contracts.steps import accepted, claim_one, ids, seen, send
from pm_dagster_tests.ledger.postgres_control_table import PostgresControlTable, eventually


def test_a_row_locked_by_its_owner_is_claimed_later(table: PostgresControlTable) -> None:
    locked, free = table.add(age=10), table.add()
    control = table.dispatcher()
    jobs = seen(control)
    with table.locked(locked):
        assert [entry.run_id for entry in control.claim(jobs)] == [free]
    assert [entry.run_id for entry in control.claim(jobs[:1])] == [locked]


def test_a_row_locked_by_its_owner_is_closed_later(table: PostgresControlTable) -> None:
    locked, free = table.add(age=10), table.add()
    control = table.dispatcher()
    entries = control.claim(seen(control))
    for entry in entries:
        send(control, entry)
    numbers = [entry.entry_id for entry in entries]
    with table.locked(locked):
        assert [item.run_id for item in control.close(numbers)] == [free]
        assert table.ledger(locked) == [(1, "ACCEPTED", True)]
    assert sorted(item.run_id for item in control.close(numbers)) == [locked, free]
    assert table.status(locked) == "SCHEDULED"


def test_a_row_being_closed_is_not_claimed_by_one_who_read_it_before(table: PostgresControlTable) -> None:
    """The closing holds the row's lock: while it is under way and after it, the early reader gets nothing."""
    run_id = table.add()
    first, late = table.dispatcher(), table.dispatcher()
    read_too_early = seen(late)
    entry = claim_one(first)
    send(first, entry)
    with closing(psycopg2.connect(table.url)) as closer, closer, closer.cursor() as cursor:
        cursor.execute("UPDATE mm_run_plc SET run_sttus_name = 'SCHEDULED' WHERE run_id = %s", (run_id,))
        cursor.execute(
            "UPDATE process_manager.entry SET state = 'SCHEDULED', open = false, closed_at = now() WHERE entry_id = %s",
            (entry.entry_id,),
        )
        assert late.claim(read_too_early) == []
    assert late.claim(read_too_early) == []
    assert table.ledger(run_id) == [(1, "SCHEDULED", False)]


def test_many_dispatchers_send_each_row_once(table: PostgresControlTable) -> None:
    """Everybody reads everything first, then all work at once on what they read."""
    rows = [table.add() for _ in range(40)]
    controls = [table.dispatcher() for _ in range(4)]
    read: list[list[WaitingJob]] = [seen(control) for control in controls]

    def work(number: int) -> list[int]:
        control, jobs = controls[number], read[number]
        granted: list[int] = []
        for start in range(0, len(jobs), 5):
            entries = control.claim(jobs[start : start + 5])
            sent = control.intend([intent_committed(entry) for entry in entries])
            control.record([accepted(entry) for entry in entries if entry.entry_id in sent])
            control.close(sent)
            granted += [entry.run_id for entry in entries if entry.entry_id in sent]
        return granted

    with ThreadPoolExecutor(len(controls)) as pool:
        sent = [run_id for part in pool.map(work, range(len(controls))) for run_id in part]
    left = ids(controls[0])
    assert sorted(sent + [int(str(run_id)) for run_id in left]) == rows
    assert table.ask("SELECT max(generation), count(*) FROM process_manager.entry") == [(1, len(sent))]


def test_a_moved_row_is_not_set_back_even_if_it_moves_during_the_closing(table: PostgresControlTable) -> None:
    run_id = table.add()
    control = table.dispatcher()
    entry = claim_one(control)
    send(control, entry)
    with closing(psycopg2.connect(table.url)) as owner, owner, owner.cursor() as cursor:
        cursor.execute("UPDATE mm_run_plc SET run_sttus_name = 'RUNNING' WHERE run_id = %s", (run_id,))
        assert control.close([entry.entry_id]) == []
    assert control.close([entry.entry_id])[0].state is EntryState.SCHEDULED
    assert table.status(run_id) == "RUNNING"


def test_a_hundred_thousand_waiting_rows_are_read_up_to_the_limit(table: PostgresControlTable) -> None:
    table.ask("""INSERT INTO mm_run_plc (wkf_job_id, run_sttus_name, rgstr_file_time)
                 SELECT 1001, 'WAITING', now() - n * interval '1 second' FROM generate_series(1, 100000) n""")
    table.ask("ANALYZE mm_run_plc")
    control = table.dispatcher()
    jobs = seen(control, limit=1000)
    assert len(jobs) == 1000
    assert [job.run_id for job in jobs] == list(range(100_000, 99_000, -1)), "the oldest come first"
    assert len(control.claim(jobs)) == 1000
    assert table.dispatcher().backlog().ready == 99_000
    assert ids(control, limit=1000)[:1] == [100_000], "ours are still ours to take up"
    assert ids(table.dispatcher(), limit=1) == [99_000]


def test_the_history_tells_each_step(table: PostgresControlTable) -> None:
    run_id = table.add()
    control = table.dispatcher()
    entry = claim_one(control)
    send(control, entry)
    control.close([entry.entry_id])
    control.close([entry.entry_id])
    assert table.events(run_id) == ["claimed", "intent", "answer", "closed"]


@pytest.mark.parametrize("text", ["a\x00b", "half a pair \ud800 here", "\udfff", "\U0001f600", "\\u0000", "%s {x} '"])
def test_a_workspaces_strange_words_do_not_stop_the_recording(table: PostgresControlTable, text: str) -> None:
    """What the workspace says goes into the ledger as far as Postgres can hold it."""
    run_id = table.add()
    control = table.dispatcher()
    entry = claim_one(control)
    control.intend([intent_committed(entry)])
    control.record([replace(accepted(entry), reason=text, events=(Event("answer", text),), page_url=text)])
    assert control.close([entry.entry_id])[0].state is EntryState.SCHEDULED
    assert table.status(run_id) == "SCHEDULED"


def test_a_lock_that_one_rows_trigger_waits_for_holds_up_no_other_row(table: PostgresControlTable) -> None:
    """The owner's table keeps sums by contract, and somebody holds that of one contract."""
    table.ask("""
        CREATE TABLE sums (cntrt_id int PRIMARY KEY, changes int);
        INSERT INTO sums VALUES (7, 0), (8, 0);
        CREATE FUNCTION add_up() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            UPDATE sums SET changes = changes + 1 WHERE cntrt_id = NEW.cntrt_id; RETURN NEW; END $$;
        CREATE TRIGGER add_up AFTER UPDATE OF run_sttus_name ON mm_run_plc FOR EACH ROW EXECUTE FUNCTION add_up()""")
    held, *others = (table.add() for _ in range(5))
    table.ask("UPDATE mm_run_plc SET cntrt_id = 8 WHERE run_id <> %s", held)
    control = table.dispatcher()
    entries = control.claim(seen(control))
    for number, entry in enumerate(entries, 100):
        control.intend([intent_committed(entry)])
        control.record([accepted(entry, number)])
    with closing(psycopg2.connect(table.url)) as somebody, somebody.cursor() as cursor:
        cursor.execute("SELECT FROM sums WHERE cntrt_id = 7 FOR UPDATE")
        assert len(control.close([entry.entry_id for entry in entries])) == len(others)
        assert table.status(held) == "WAITING"
        assert {table.status(run_id) for run_id in others} == {"SCHEDULED"}
        assert "not closed" in table.events(held)
        somebody.rollback()
    control.close([entry.entry_id for entry in entries])
    assert table.status(held) == "SCHEDULED"


def _in_doubt(table: PostgresControlTable, *controls: ControlPlane) -> list[list[Entry]]:
    """Two rows for each dispatcher, whose answers were lost."""
    taken = []
    for control in controls:
        rows = {table.add(), table.add()}
        entries = control.claim([job for job in seen(control) if job.run_id in rows])
        assert control.intend([intent_committed(entry) for entry in entries]) == {entry.entry_id for entry in entries}
        taken.append(entries)
    return taken


def _found(entry: Entry, run_id: int) -> Change:
    return replace(accepted(entry, run_id), outcome=Outcome.ADOPTED, found=True)


def test_who_finds_a_run_waits_for_another_who_is_about_to_take_it(table: PostgresControlTable) -> None:
    """The other has read and written, and has not committed: what it wrote is not to be seen yet."""
    first, second = table.dispatcher(), table.dispatcher()
    (mine, _), (others, _) = _in_doubt(table, first, second)
    waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    with closing(psycopg2.connect(table.url)) as other, other.cursor() as cursor, ThreadPoolExecutor(1) as pool:
        cursor.execute(LOCK_RUNS, {"runs": [5]})
        cursor.execute(
            "UPDATE process_manager.entry SET accepted_run_id = 5, state = 'ACCEPTED' WHERE entry_id = %s",
            (others.entry_id,),
        )
        recording = pool.submit(first.record, [_found(mine, 5)])
        try:
            eventually(lambda: table.ask(waiting) == [(1,)], "it waits")
        finally:
            other.commit()
        assert recording.result(60) == {mine.entry_id}
    assert table.ask("SELECT entry_id FROM process_manager.entry WHERE accepted_run_id = 5") == [(others.entry_id,)]
    assert table.events(mine.run_id)[-1] == "passed over"


def test_two_who_find_the_same_runs_in_any_order_neither_share_one_nor_block_each_other(
    table: PostgresControlTable,
) -> None:
    first, second = table.dispatcher(), table.dispatcher()
    for low in range(100, 130, 2):
        mine, others = _in_doubt(table, first, second)
        together = Barrier(2)

        def take(
            control: ControlPlane, entries: list[Entry], runs: tuple[int, int], start: Barrier = together
        ) -> set[int]:
            start.wait(60)
            return control.record([_found(entry, run) for entry, run in zip(entries, runs, strict=True)])

        with ThreadPoolExecutor(2) as pool:
            one = pool.submit(take, first, mine, (low, low + 1))
            two = pool.submit(take, second, others, (low + 1, low))
            refused = one.result(60) | two.result(60)
        assert refused in ({entry.entry_id for entry in mine}, {entry.entry_id for entry in others})
    doubly = "SELECT accepted_run_id FROM process_manager.entry GROUP BY 1 HAVING count(accepted_run_id) > 1"
    assert table.ask(doubly) == []
