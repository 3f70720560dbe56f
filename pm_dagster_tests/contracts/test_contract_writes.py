"""What every ControlPlane promises about intents, answers and closing."""

from __future__ import annotations

from dataclasses import replace

from pm_dagster.dispatch.model import EntryState, Outcome
from pm_dagster.dispatch.ports import Change, Intent
from pm_dagster_tests.contracts.steps import ANSWER, accepted, claim_one, deferred, ids, quarantined, seen, send
from pm_dagster_tests.contracts.worlds import World


def test_an_intent_for_a_row_that_left_waiting_is_withdrawn(world: World) -> None:
    run_id = world.add()
    control = world.dispatcher()
    entry = claim_one(control)
    world.set_status(run_id, "RUNNING")
    assert control.intend([Intent(entry)]) == set()
    assert world.status(run_id) == "RUNNING"
    assert control.resume([entry.entry_id]) == []
    assert control.close([entry.entry_id]) == []


def test_an_intent_for_a_row_that_vanished_is_withdrawn(world: World) -> None:
    run_id = world.add()
    control = world.dispatcher()
    entry = claim_one(control)
    world.remove(run_id)
    assert control.intend([Intent(entry)]) == set()


def test_one_withdrawn_intent_does_not_stop_the_others(world: World) -> None:
    gone, kept = world.add(age=10), world.add()
    control = world.dispatcher()
    entries = control.claim(seen(control))
    world.set_status(gone, "CANCELLED")
    granted = control.intend([Intent(entry) for entry in entries])
    assert granted == {entry.entry_id for entry in entries if entry.run_id == kept}


def test_an_intent_may_be_repeated(world: World) -> None:
    world.add()
    control = world.dispatcher()
    intent = Intent(claim_one(control))
    assert control.intend([intent]) == control.intend([intent]) == {intent.entry.entry_id}


def test_an_intent_for_what_is_answered_takes_nothing_back(world: World) -> None:
    """Else the answer would be forgotten, and the row start a second time."""
    run_id = world.add()
    control = world.dispatcher()
    entry = claim_one(control)
    send(control, entry)
    assert control.intend([Intent(entry)]) == set()
    (closed,) = control.close([entry.entry_id])
    assert (closed.state, closed.accepted_run_id) == (EntryState.SCHEDULED, 5)
    assert world.status(run_id) == "SCHEDULED"


def test_a_repeated_intent_keeps_the_time_of_the_first(world: World) -> None:
    """A run whose answer was lost is searched for from there on."""
    world.add()
    control = world.dispatcher()
    intent = Intent(claim_one(control))
    control.intend([intent])
    (first,) = control.resume([intent.entry.entry_id])
    control.intend([intent])
    (second,) = control.resume([intent.entry.entry_id])
    assert first.intent_at is not None
    assert second.intent_at == first.intent_at


def test_a_fresh_run_that_is_sent_again_stays_one(world: World) -> None:
    """Else an heir would look for a repair that was never made, and refuse the row."""
    world.add(previous=5)
    control = world.dispatcher()
    entry = claim_one(control)
    control.intend([Intent(entry, fresh_run=True)])
    (sent,) = control.resume([entry.entry_id])
    control.intend([Intent(sent)])
    (again,) = control.resume([entry.entry_id])
    assert (sent.fresh_run, again.fresh_run) == (True, True)


def test_what_was_intended_before_a_refusal_binds_no_later_claim(world: World) -> None:
    world.add(previous=5)
    control = world.dispatcher()
    entry = claim_one(control)
    control.intend([Intent(entry, latest_repair_id=6)])
    control.intend([Intent(entry, fresh_run=True)])
    control.record([deferred(entry, 0)])
    again = claim_one(control)
    assert again.entry_id == entry.entry_id
    assert (again.fresh_run, again.sent_repair_id) == (False, None)


def test_a_row_whose_answer_was_lost_may_be_sent_again_though_it_left_waiting(world: World) -> None:
    run_id = world.add()
    control = world.dispatcher()
    entry = claim_one(control)
    control.intend([Intent(entry)])
    world.set_status(run_id, "RUNNING")
    again = Intent(replace(entry, state=EntryState.SENDING, ambiguous=True))
    assert control.intend([again]) == {entry.entry_id}


def test_a_row_that_left_waiting_after_a_clean_refusal_is_withdrawn(world: World) -> None:
    """Throttled or refused, nothing was started: by now its owner wants it no more."""
    run_id = world.add()
    control = world.dispatcher()
    entry = claim_one(control)
    control.intend([Intent(entry)])
    world.set_status(run_id, "CANCELED")
    assert control.intend([Intent(replace(entry, state=EntryState.SENDING))]) == set()
    assert control.resume([entry.entry_id]) == []
    assert world.status(run_id) == "CANCELED"


def test_a_dispatcher_that_lost_its_claim_can_write_nothing(world: World) -> None:
    run_id = world.add()
    loser, heir = world.dispatcher(), world.dispatcher()
    entry = claim_one(loser)
    world.die(loser)
    claim_one(heir)
    assert loser.intend([Intent(entry)]) == set()
    loser.record([accepted(entry)])
    assert loser.close([entry.entry_id]) == []
    assert world.status(run_id) == "WAITING"
    assert heir.resume([entry.entry_id])[0].state is EntryState.CLAIMED


def test_another_dispatcher_can_neither_record_nor_close(world: World) -> None:
    run_id = world.add()
    owner, other = world.dispatcher(), world.dispatcher()
    entry = claim_one(owner)
    send(owner, entry)
    other.record([quarantined(entry)])
    assert other.close([entry.entry_id]) == []
    assert world.status(run_id) == "WAITING"
    assert owner.close([entry.entry_id])[0].state is EntryState.SCHEDULED


def test_a_recorded_answer_may_be_repeated(world: World) -> None:
    world.add()
    control = world.dispatcher()
    entry = claim_one(control)
    send(control, entry)
    control.record([accepted(entry)])
    control.record([])
    (resumed,) = control.resume([entry.entry_id])
    assert resumed.state is EntryState.ACCEPTED


def test_an_event_alone_leaves_the_state(world: World) -> None:
    world.add()
    control = world.dispatcher()
    entry = claim_one(control)
    control.intend([Intent(entry)])
    control.record([Change(entry.entry_id, ANSWER, ambiguous=True)])
    (resumed,) = control.resume([entry.entry_id])
    assert (resumed.state, resumed.ambiguous) == (EntryState.SENDING, True)


def test_closing_schedules_the_row_and_may_be_repeated(world: World) -> None:
    run_id = world.add()
    control = world.dispatcher()
    entry = claim_one(control)
    send(control, entry)
    first, second = control.close([entry.entry_id]), control.close([entry.entry_id])
    assert first == second
    assert (first[0].outcome, first[0].page_url) == (Outcome.ACCEPTED, "https://host/run/5")
    assert world.status(run_id) == "SCHEDULED"
    assert ids(control) == []
    assert control.close([]) == []


def test_what_an_earlier_step_closed_is_told_to_the_next(world: World) -> None:
    """With an executor of many processes each step is a dispatcher of its own; the last one reports."""
    run_id = world.add()
    step = world.dispatcher()
    entry = claim_one(step)
    send(step, entry)
    step.close([entry.entry_id])
    step.end()
    last = world.dispatcher()
    assert last.resume([entry.entry_id]) == []
    (told,) = last.close([entry.entry_id])
    assert (told.run_id, told.state, told.control_status) == (run_id, EntryState.SCHEDULED, "SCHEDULED")


def test_closing_a_row_whose_run_succeeded_says_so(world: World) -> None:
    run_id = world.add(previous=5)
    control = world.dispatcher()
    entry = claim_one(control)
    control.record([accepted(entry, succeeded=True)])
    assert control.close([entry.entry_id])[0].control_status == "SUCCESS"
    assert world.status(run_id) == "SUCCESS"


def test_closing_does_not_set_back_a_row_that_moved_on(world: World) -> None:
    run_id = world.add()
    control = world.dispatcher()
    entry = claim_one(control)
    send(control, entry)
    world.set_status(run_id, "RUNNING")
    (closed,) = control.close([entry.entry_id])
    assert (closed.state, closed.control_status) == (EntryState.SCHEDULED, "RUNNING")
    assert world.status(run_id) == "RUNNING"


def test_closing_an_accepted_row_that_vanished_closes_the_ledger(world: World) -> None:
    run_id = world.add()
    control = world.dispatcher()
    entry = claim_one(control)
    send(control, entry)
    world.remove(run_id)
    (closed,) = control.close([entry.entry_id])
    assert (closed.state, closed.control_status) == (EntryState.SCHEDULED, None)


def test_closing_leaves_what_has_no_answer_yet(world: World) -> None:
    run_id = world.add()
    control = world.dispatcher()
    entry = claim_one(control)
    assert control.close([entry.entry_id]) == []
    control.intend([Intent(entry)])
    assert control.close([entry.entry_id]) == []
    assert world.status(run_id) == "WAITING"


def test_closing_a_quarantined_row_marks_it_failed(world: World) -> None:
    run_id = world.add()
    control = world.dispatcher()
    entry = claim_one(control)
    control.record([quarantined(entry)])
    (closed,) = control.close([entry.entry_id])
    assert (closed.state, closed.reason, closed.control_status) == (EntryState.QUARANTINED, "unknown job", "FAILED")
    assert world.status(run_id) == "FAILED"


def test_what_is_closed_is_not_written_again(world: World) -> None:
    run_id = world.add()
    control = world.dispatcher()
    entry = claim_one(control)
    send(control, entry)
    before = control.close([entry.entry_id])
    control.record([deferred(entry, 0)])
    assert control.close([entry.entry_id]) == before
    assert (control.resume([entry.entry_id]), control.take_over(10), ids(control)) == ([], [], [])
    assert world.status(run_id) == "SCHEDULED"


def test_an_answer_that_was_lost_stays_so(world: World) -> None:
    """A later answer that was heard, such as a refusal, says nothing of the call before it."""
    world.add()
    control = world.dispatcher()
    entry = claim_one(control)
    control.intend([Intent(entry)])
    control.record([Change(entry.entry_id, ANSWER, ambiguous=True)])
    control.record([deferred(entry, 0)])
    (resumed,) = control.resume([entry.entry_id])
    assert (resumed.state, resumed.ambiguous) == (EntryState.DEFERRED, True)


def test_a_refusal_that_a_dead_dispatcher_recorded_is_closed_by_its_heir(world: World) -> None:
    run_id = world.add()
    dead, heir = world.dispatcher(), world.dispatcher()
    entry = claim_one(dead)
    dead.record([quarantined(entry)])
    world.die(dead)
    assert [each.entry_id for each in heir.take_over(10)] == [entry.entry_id]
    (closed,) = heir.close([entry.entry_id])
    assert (closed.reason, closed.control_status) == ("unknown job", "FAILED")
    assert world.status(run_id) == "FAILED"
