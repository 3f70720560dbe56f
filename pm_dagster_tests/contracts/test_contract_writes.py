"""What every ControlPlane promises about intents, answers and closing."""

from __future__ import annotations

from dataclasses import replace

from pm_dagster.dispatch.in_doubt import intent_committed
from pm_dagster.dispatch.model import EntryState, Outcome
from pm_dagster.dispatch.ports import Change, Event, Written
from pm_dagster_tests.contracts.control_table import ControlTable
from pm_dagster_tests.contracts.steps import ANSWER, accepted, claim_one, deferred, ids, quarantined, seen, send


def test_an_intent_for_a_row_that_left_waiting_is_withdrawn(table: ControlTable) -> None:
    run_id = table.add()
    control = table.dispatcher()
    entry = claim_one(control)
    table.set_status(run_id, "RUNNING")
    assert control.intend([intent_committed(entry)]) == set()
    assert table.status(run_id) == "RUNNING"
    assert control.resume([entry.entry_id]) == []
    assert control.close([entry.entry_id]) == []


def test_an_intent_for_a_row_that_vanished_is_withdrawn(table: ControlTable) -> None:
    run_id = table.add()
    control = table.dispatcher()
    entry = claim_one(control)
    table.remove(run_id)
    assert control.intend([intent_committed(entry)]) == set()


def test_one_withdrawn_intent_does_not_stop_the_others(table: ControlTable) -> None:
    gone, kept = table.add(age=10), table.add()
    control = table.dispatcher()
    entries = control.claim(seen(control))
    table.set_status(gone, "CANCELLED")
    granted = control.intend([intent_committed(entry) for entry in entries])
    assert granted == {entry.entry_id for entry in entries if entry.run_id == kept}


def test_an_intent_may_be_repeated(table: ControlTable) -> None:
    table.add()
    control = table.dispatcher()
    intent = intent_committed(claim_one(control))
    assert control.intend([intent]) == control.intend([intent]) == {intent.entry_id}


def test_an_intent_for_what_is_answered_takes_nothing_back(table: ControlTable) -> None:
    """Else the answer would be forgotten, and the row start a second time."""
    run_id = table.add()
    control = table.dispatcher()
    entry = claim_one(control)
    send(control, entry)
    assert control.intend([intent_committed(entry)]) == set()
    (closed,) = control.close([entry.entry_id])
    assert (closed.state, closed.accepted_run_id) == (EntryState.SCHEDULED, 5)
    assert table.status(run_id) == "SCHEDULED"


def test_a_repeated_intent_keeps_the_time_of_the_first(table: ControlTable) -> None:
    """A run whose answer was lost is searched for from there on."""
    table.add()
    control = table.dispatcher()
    intent = intent_committed(claim_one(control))
    control.intend([intent])
    (first,) = control.resume([intent.entry_id])
    control.intend([intent])
    (second,) = control.resume([intent.entry_id])
    assert first.intent_at is not None
    assert second.intent_at == first.intent_at


def test_a_fresh_run_that_is_sent_again_stays_one(table: ControlTable) -> None:
    """Else an rescuer would look for a repair that was never made, and refuse the row."""
    table.add(previous=5)
    control = table.dispatcher()
    entry = claim_one(control)
    control.intend([intent_committed(entry, fresh_run=True)])
    (sent,) = control.resume([entry.entry_id])
    control.intend([intent_committed(sent)])
    (again,) = control.resume([entry.entry_id])
    assert (sent.fresh_run, again.fresh_run) == (True, True)
    # The ledger remembers it, also when the entry that comes in was read before.
    control.intend([replace(again, fresh_run=False)])
    assert [entry.fresh_run for entry in control.resume([entry.entry_id])] == [True]


def test_what_was_intended_before_a_refusal_binds_no_later_claim(table: ControlTable) -> None:
    table.add(previous=5)
    control = table.dispatcher()
    entry = claim_one(control)
    control.intend([intent_committed(entry, latest_repair_id=6)])
    control.intend([intent_committed(entry, fresh_run=True)])
    control.record([deferred(entry, 0)])
    again = claim_one(control)
    assert again.entry_id == entry.entry_id
    assert (again.fresh_run, again.sent_repair_id) == (False, None)


def test_a_row_whose_answer_was_lost_may_be_sent_again_though_it_left_waiting(table: ControlTable) -> None:
    run_id = table.add()
    control = table.dispatcher()
    entry = claim_one(control)
    control.intend([intent_committed(entry)])
    table.set_status(run_id, "RUNNING")
    again = intent_committed(replace(entry, state=EntryState.SENDING, ambiguous=True))
    assert control.intend([again]) == {entry.entry_id}


def test_a_row_that_left_waiting_after_a_clean_refusal_is_withdrawn(table: ControlTable) -> None:
    """Throttled or refused, nothing was started: by now its owner wants it no more."""
    run_id = table.add()
    control = table.dispatcher()
    entry = claim_one(control)
    control.intend([intent_committed(entry)])
    table.set_status(run_id, "CANCELED")
    assert control.intend([intent_committed(replace(entry, state=EntryState.SENDING))]) == set()
    assert control.resume([entry.entry_id]) == []
    assert table.status(run_id) == "CANCELED"


def test_a_dispatcher_that_lost_its_claim_can_write_nothing(table: ControlTable) -> None:
    run_id = table.add()
    loser, rescuer = table.dispatcher(), table.dispatcher()
    entry = claim_one(loser)
    table.die(loser)
    claim_one(rescuer)
    assert loser.intend([intent_committed(entry)]) == set()
    loser.record([accepted(entry)])
    assert loser.close([entry.entry_id]) == []
    assert table.status(run_id) == "WAITING"
    assert rescuer.resume([entry.entry_id])[0].state is EntryState.CLAIMED


def test_another_dispatcher_can_neither_record_nor_close(table: ControlTable) -> None:
    run_id = table.add()
    owner, other = table.dispatcher(), table.dispatcher()
    entry = claim_one(owner)
    send(owner, entry)
    other.record([quarantined(entry)])
    assert other.close([entry.entry_id]) == []
    assert table.status(run_id) == "WAITING"
    assert owner.close([entry.entry_id])[0].state is EntryState.SCHEDULED


def test_a_recorded_answer_may_be_repeated(table: ControlTable) -> None:
    table.add()
    control = table.dispatcher()
    entry = claim_one(control)
    send(control, entry)
    control.record([accepted(entry)])
    control.record([])
    (resumed,) = control.resume([entry.entry_id])
    assert resumed.state is EntryState.ACCEPTED


def test_an_event_alone_leaves_the_state(table: ControlTable) -> None:
    table.add()
    control = table.dispatcher()
    entry = claim_one(control)
    control.intend([intent_committed(entry)])
    control.record([Change(entry.entry_id, ANSWER, ambiguous=True)])
    (resumed,) = control.resume([entry.entry_id])
    assert (resumed.state, resumed.ambiguous) == (EntryState.SENDING, True)


def test_closing_schedules_the_row_and_may_be_repeated(table: ControlTable) -> None:
    run_id = table.add()
    control = table.dispatcher()
    entry = claim_one(control)
    send(control, entry)
    first, second = control.close([entry.entry_id]), control.close([entry.entry_id])
    assert first == second
    assert (first[0].outcome, first[0].page_url) == (Outcome.ACCEPTED, "https://host/run/5")
    assert table.status(run_id) == "SCHEDULED"
    assert ids(control) == []
    assert control.close([]) == []


def test_what_an_earlier_step_closed_is_told_to_the_next(table: ControlTable) -> None:
    """With an executor of many processes each step is a dispatcher of its own; the last one reports."""
    run_id = table.add()
    step = table.dispatcher()
    entry = claim_one(step)
    send(step, entry)
    step.close([entry.entry_id])
    step.end()
    last = table.dispatcher()
    assert last.resume([entry.entry_id]) == []
    (told,) = last.close([entry.entry_id])
    assert (told.run_id, told.state, told.control_status) == (run_id, EntryState.SCHEDULED, "SCHEDULED")


def test_closing_a_row_whose_run_succeeded_says_so(table: ControlTable) -> None:
    run_id = table.add(previous=5)
    control = table.dispatcher()
    entry = claim_one(control)
    control.record([accepted(entry, succeeded=True)])
    assert control.close([entry.entry_id])[0].control_status == "SUCCESS"
    assert table.status(run_id) == "SUCCESS"


def test_closing_does_not_set_back_a_row_that_moved_on(table: ControlTable) -> None:
    run_id = table.add()
    control = table.dispatcher()
    entry = claim_one(control)
    send(control, entry)
    table.set_status(run_id, "RUNNING")
    (closed,) = control.close([entry.entry_id])
    assert (closed.state, closed.control_status) == (EntryState.SCHEDULED, "RUNNING")
    assert table.status(run_id) == "RUNNING"


def test_closing_an_accepted_row_that_vanished_closes_the_ledger(table: ControlTable) -> None:
    run_id = table.add()
    control = table.dispatcher()
    entry = claim_one(control)
    send(control, entry)
    table.remove(run_id)
    (closed,) = control.close([entry.entry_id])
    assert (closed.state, closed.control_status) == (EntryState.SCHEDULED, None)


def test_closing_leaves_what_has_no_answer_yet(table: ControlTable) -> None:
    run_id = table.add()
    control = table.dispatcher()
    entry = claim_one(control)
    assert control.close([entry.entry_id]) == []
    control.intend([intent_committed(entry)])
    assert control.close([entry.entry_id]) == []
    assert table.status(run_id) == "WAITING"


def test_closing_a_quarantined_row_marks_it_failed(table: ControlTable) -> None:
    run_id = table.add()
    control = table.dispatcher()
    entry = claim_one(control)
    control.record([quarantined(entry)])
    (closed,) = control.close([entry.entry_id])
    assert (closed.state, closed.reason, closed.control_status) == (EntryState.QUARANTINED, "unknown job", "FAILED")
    assert table.status(run_id) == "FAILED"


def test_what_is_closed_is_not_written_again(table: ControlTable) -> None:
    run_id = table.add()
    control = table.dispatcher()
    entry = claim_one(control)
    send(control, entry)
    before = control.close([entry.entry_id])
    control.record([deferred(entry, 0)])
    assert control.close([entry.entry_id]) == before
    assert (control.resume([entry.entry_id]), control.rescue(10), ids(control)) == ([], [], [])
    assert table.status(run_id) == "SCHEDULED"


def test_an_answer_that_was_lost_stays_so(table: ControlTable) -> None:
    """A later answer that was heard, such as a refusal, says nothing of the call before it."""
    table.add()
    control = table.dispatcher()
    entry = claim_one(control)
    control.intend([intent_committed(entry)])
    control.record([Change(entry.entry_id, ANSWER, ambiguous=True)])
    control.record([deferred(entry, 0)])
    (resumed,) = control.resume([entry.entry_id])
    assert (resumed.state, resumed.ambiguous) == (EntryState.DEFERRED, True)


def test_a_refusal_that_a_dead_dispatcher_recorded_is_closed_by_its_rescuer(table: ControlTable) -> None:
    run_id = table.add()
    dead, rescuer = table.dispatcher(), table.dispatcher()
    entry = claim_one(dead)
    dead.record([quarantined(entry)])
    table.die(dead)
    assert [each.entry_id for each in rescuer.rescue(10)] == [entry.entry_id]
    (closed,) = rescuer.close([entry.entry_id])
    assert (closed.reason, closed.control_status) == ("unknown job", "FAILED")
    assert table.status(run_id) == "FAILED"


def test_answers_and_the_intents_of_others_are_written_together(table: ControlTable) -> None:
    table.add(age=20)
    gone, table_row = table.add(age=10), table.add()
    control = table.dispatcher()
    answered, left, next_one = control.claim(seen(control))
    assert (left.run_id, next_one.run_id) == (gone, table_row)
    control.intend([intent_committed(answered)])
    table.set_status(gone, "CANCELED")
    written = control.record_and_intend([accepted(answered)], [intent_committed(left), intent_committed(next_one)])
    assert written == Written(set(), {next_one.entry_id})
    stored = [table.stored(entry.entry_id)[0] for entry in (answered, left, next_one)]
    assert stored == [EntryState.ACCEPTED, EntryState.WITHDRAWN, EntryState.SENDING]
    assert control.record_and_intend([], []) == Written(set(), set())


def test_a_call_that_did_not_leave_may_be_intended_anew_in_the_same_write(table: ControlTable) -> None:
    table.add()
    control = table.dispatcher()
    intent = intent_committed(claim_one(control))
    control.intend([intent])
    not_sent = Change(intent.entry_id, (Event("not sent", "it had not left"),), EntryState.CLAIMED)
    assert control.record_and_intend([not_sent], [intent]) == Written(set(), {intent.entry_id})
    assert table.stored(intent.entry_id) == (EntryState.SENDING, False)
    assert control.record_and_intend([not_sent], []) == Written(set(), set())
    assert table.stored(intent.entry_id) == (EntryState.CLAIMED, False)


def test_a_run_of_another_row_is_passed_over_while_intents_are_committed(table: ControlTable) -> None:
    table.add(age=20)
    table.add(age=10)
    table.add()
    control = table.dispatcher()
    owner, finder, next_one = control.claim(seen(control))
    send(control, owner)
    control.intend([intent_committed(finder)])
    found = replace(accepted(finder), found=True)
    written = control.record_and_intend([found], [intent_committed(next_one)])
    assert written == Written({finder.entry_id}, {next_one.entry_id})
    assert table.stored(finder.entry_id)[0] is EntryState.SENDING


def test_a_corrected_row_is_not_granted_beside_answers(table: ControlTable) -> None:
    table.add(age=10)
    corrected = table.add()
    control = table.dispatcher()
    answered, other = control.claim(seen(control))
    control.intend([intent_committed(answered)])
    table.rename(corrected, "other.csv")
    written = control.record_and_intend([accepted(answered)], [intent_committed(other)])
    assert written == Written(set(), set())
    (now,) = control.resume([other.entry_id])
    assert (now.state, now.parameters["FILE_NAME"]) == (EntryState.CLAIMED, "other.csv")
    assert table.stored(answered.entry_id)[0] is EntryState.ACCEPTED
