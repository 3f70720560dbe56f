"""What every ControlPlane promises about rows that come back, are refused, or are counted."""

from __future__ import annotations

from dataclasses import replace

from pm_dagster.dispatch.in_doubt import intent_committed
from pm_dagster.dispatch.ports import Change, Event
from pm_dagster.dispatch.waiting_job import sort_rows
from pm_dagster_tests.contracts.control_table import ControlTable
from pm_dagster_tests.contracts.steps import claim_one, deferred, ids, quarantined, seen, send


def test_a_deferred_row_comes_back_only_after_its_time(table: ControlTable) -> None:
    run_id = table.add()
    control = table.dispatcher()
    entry = claim_one(control)
    jobs = seen(table.dispatcher())
    control.record([deferred(entry, 600.0, counts=True)])
    assert ids(control) == []
    assert control.claim(jobs) == []
    assert control.backlog().backing_off == 1
    table.pass_time(601.0)
    assert ids(control) == [run_id]
    again = claim_one(control)
    assert (again.entry_id, again.generation, again.attempts) == (entry.entry_id, 1, 1)
    assert again.idempotency_token == entry.idempotency_token


def test_rows_not_tried_yet_come_before_rows_that_come_back(table: ControlTable) -> None:
    """However many old rows fail again and again, the others have their turn."""
    for _ in range(3):
        table.add(age=900)
    control = table.dispatcher()
    control.record([deferred(entry, 0.0) for entry in control.claim(seen(control))])
    fresh = [table.add(age=100), table.add(age=50)]
    assert ids(control, limit=2) == fresh
    assert ids(control)[:2] == fresh
    assert len(ids(control)) == 5


def test_a_deferral_that_does_not_count_uses_up_no_attempt(table: ControlTable) -> None:
    table.add()
    control = table.dispatcher()
    control.record([deferred(claim_one(control), 0.0)])
    assert claim_one(control).attempts == 0


def test_an_unresolved_row_with_a_pause_is_taken_over_only_after_it(table: ControlTable) -> None:
    table.add()
    control = table.dispatcher()
    entry = claim_one(control)
    control.intend([intent_committed(entry)])
    pause = Change(entry.entry_id, (Event("deferred"),), reason="5xx", defer_seconds=600.0, ambiguous=True)
    control.record([pause])
    control.end()
    rescuer = table.dispatcher()
    assert rescuer.rescue(10) == []
    table.pass_time(601.0)
    assert len(rescuer.rescue(10)) == 1


def test_the_generation_rises_when_a_closed_row_waits_again(table: ControlTable) -> None:
    run_id = table.add()
    control = table.dispatcher()
    first = claim_one(control)
    send(control, first)
    control.close([first.entry_id])
    table.set_status(run_id, "WAITING")
    second = claim_one(control)
    assert (second.generation, second.entry_id != first.entry_id) == (2, True)
    assert second.idempotency_token != first.idempotency_token


def test_the_generation_rises_after_a_withdrawal(table: ControlTable) -> None:
    run_id = table.add()
    control = table.dispatcher()
    entry = claim_one(control)
    table.set_status(run_id, "HELD")
    control.intend([intent_committed(entry)])
    table.set_status(run_id, "WAITING")
    assert claim_one(control).generation == 2


def test_a_row_read_before_it_was_closed_is_not_claimed_again(table: ControlTable) -> None:
    run_id = table.add()
    first, late = table.dispatcher(), table.dispatcher()
    read_too_early = seen(late)
    entry = claim_one(first)
    send(first, entry)
    first.close([entry.entry_id])
    assert late.claim(read_too_early) == []
    assert late.rescue(10) == []
    table.set_status(run_id, "WAITING")
    assert claim_one(late).generation == 2


def test_refused_rows_are_marked_failed_with_the_reason(table: ControlTable) -> None:
    run_id = table.add(job_id=None)
    good = table.add()
    control = table.dispatcher()
    jobs, refused = sort_rows(control.waiting(10))
    assert [row.run_id for row in refused] == [run_id]
    control.refuse(refused)
    control.refuse(refused)
    assert table.status(run_id) == "FAILED"
    assert [entry.run_id for entry in control.claim(jobs)] == [good]
    assert control.backlog().quarantined == 0


def test_refusing_a_row_without_an_id_records_nothing(table: ControlTable) -> None:
    table.add(job_id=None)
    control = table.dispatcher()
    _, refused = sort_rows(control.waiting(10))
    control.refuse([replace(refused[0], run_id=None)])
    control.refuse([])
    assert len(ids(control)) == 1


def test_a_refused_row_that_waits_again_is_dispatched(table: ControlTable) -> None:
    run_id = table.add(job_id=None)
    control = table.dispatcher()
    control.refuse(sort_rows(control.waiting(10))[1])
    table.set_status(run_id, "WAITING")
    assert ids(control) == [run_id]


def test_another_dispatchers_row_cannot_be_refused(table: ControlTable) -> None:
    run_id = table.add(job_id=None)
    late, owner = table.dispatcher(), table.dispatcher()
    _, refused = sort_rows(late.waiting(10))
    table.correct(run_id, 1001)
    entry = claim_one(owner)
    late.refuse(refused)
    assert table.status(run_id) == "WAITING"
    assert owner.intend([intent_committed(entry)]) == {entry.entry_id}


def test_the_backlog_counts_what_a_dispatch_would_take(table: ControlTable) -> None:
    reader, owner = table.dispatcher(), table.dispatcher()
    empty = reader.backlog()
    assert (empty.ready, empty.oldest_seconds) == (0, None)
    table.add(age=1000)
    table.add(age=10)
    counted = reader.backlog()
    assert counted.ready == 2
    assert counted.oldest_seconds is not None
    assert 900 < counted.oldest_seconds < 2000
    entries = owner.claim(seen(owner))
    assert (reader.backlog().ready, reader.backlog().in_hand) == (0, 2)
    owner.intend([intent_committed(entries[0])])
    table.die(owner)
    assert reader.backlog().ready == 2


def test_a_refused_row_that_still_says_waiting_calls_for_a_dispatch(table: ControlTable) -> None:
    """Its dispatcher died before the control table said FAILED: no other row has to come for somebody to look."""
    run_id = table.add()
    control = table.dispatcher()
    entry = claim_one(control)
    control.intend([intent_committed(entry)])
    control.record([quarantined(entry)])
    assert control.backlog().ready == 0
    table.die(control)
    rescuer = table.dispatcher()
    assert rescuer.backlog().ready == 1
    rescuer.close([left.entry_id for left in rescuer.rescue(10)])
    assert (table.status(run_id), rescuer.backlog().ready) == ("FAILED", 0)


def test_a_heartbeat_may_come_at_any_time(table: ControlTable) -> None:
    control = table.dispatcher()
    control.heartbeat()
    table.add()
    claim_one(control)
    control.heartbeat()
    control.heartbeat()


def test_who_registers_is_known_by_name_and_lives_before_any_write(table: ControlTable) -> None:
    one, other = table.dispatcher(actor="one"), table.dispatcher(actor="other")
    assert other.signs_of_life(["one", "nobody"]) == {}
    one.register()
    signs = other.signs_of_life(["one", "nobody"])
    assert list(signs) == ["one"]
    assert (signs["one"].alive, signs["one"].left) == (True, False)
    assert 0 <= signs["one"].seconds_ago < 10
    assert other.signs_of_life([]) == {}


def test_it_is_told_apart_who_left_and_who_died(table: ControlTable) -> None:
    left, dead, witness = table.dispatcher(actor="left"), table.dispatcher(actor="dead"), table.dispatcher()
    left.register()
    dead.register()
    left.end()
    table.die(dead)
    signs = witness.signs_of_life(["left", "dead"])
    assert {actor: (sign.alive, sign.left) for actor, sign in signs.items()} == {
        "left": (False, True),
        "dead": (False, False),
    }


def test_a_name_lives_while_one_of_its_dispatchers_does(table: ControlTable) -> None:
    """Where each step is a process of its own, a run has several dispatchers one after the other."""
    first, second = table.dispatcher(actor="run"), table.dispatcher(actor="run")
    first.register()
    first.end()
    second.register()
    assert table.dispatcher().signs_of_life(["run"])["run"].alive
    table.die(second)
    sign = table.dispatcher().signs_of_life(["run"])["run"]
    assert (sign.alive, sign.left) == (False, True)


def test_an_old_refusal_does_not_meet_a_new_request(table: ControlTable) -> None:
    """Its dispatcher died before the control table said it, and the owner took the row back himself."""
    run_id = table.add()
    dead, rescuer = table.dispatcher(), table.dispatcher()
    dead.record([quarantined(claim_one(dead))])
    table.die(dead)
    table.set_status(run_id, "CANCELED")
    rescuer.close([entry.entry_id for entry in rescuer.rescue(10)])
    assert table.status(run_id) == "CANCELED"
    table.set_status(run_id, "WAITING")
    assert rescuer.rescue(10) == []
    assert claim_one(rescuer).generation == 2
