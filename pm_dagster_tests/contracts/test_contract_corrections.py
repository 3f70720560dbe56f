"""What every ControlPlane promises about rows that their owner corrects while a dispatch works on them."""

from __future__ import annotations

from dataclasses import replace

from pm_dagster.dispatch.in_doubt import intent_committed
from pm_dagster.dispatch.model import Entry, EntryState, Outcome
from pm_dagster.dispatch.ports import Change, ControlPlane, Event
from pm_dagster_tests.contracts.control_table import ControlTable
from pm_dagster_tests.contracts.steps import ANSWER, accepted, claim_one, ids, quarantined, seen, send


def _in_doubt(table: ControlTable, control: ControlPlane) -> Entry:
    """A row whose call may have taken effect: its dispatcher died. Gives the entry as it was sent."""
    entry = claim_one(control)
    assert control.intend([intent_committed(entry)]) == {entry.entry_id}
    table.die(control)
    return entry


def _superseded(entry: Entry, run_id: int | None = None) -> Change:
    reason = "run 5 was started before the row was corrected"
    return Change(
        entry.entry_id,
        (Event("superseded", reason),),
        state=EntryState.WITHDRAWN,
        outcome=Outcome.WITHDRAWN,
        accepted_run_id=run_id,
        reason=reason,
        superseded=True,
    )


def test_what_is_sent_is_what_the_row_says_at_the_intent(table: ControlTable) -> None:
    run_id = table.add()
    control = table.dispatcher()
    claimed = claim_one(control)
    table.rename(run_id, "corrected.csv")
    assert control.intend([intent_committed(claimed)]) == set()
    (now,) = control.resume([claimed.entry_id])
    assert (now.entry_id, now.generation, now.state) == (claimed.entry_id, 1, EntryState.CLAIMED)
    assert (now.parameters["FILE_NAME"], now.correction) == ("corrected.csv", "")
    assert now.idempotency_token != claimed.idempotency_token
    send(control, now)
    control.close([now.entry_id])
    assert table.status(run_id) == "SCHEDULED"


def test_a_row_that_became_a_repair_before_the_intent_is_taken_as_one(table: ControlTable) -> None:
    run_id = table.add()
    control = table.dispatcher()
    claimed = claim_one(control)
    table.name_run(run_id, 77)
    assert control.intend([intent_committed(claimed)]) == set()
    (now,) = control.resume([claimed.entry_id])
    assert (now.previous_run_id, now.starts_new_run) == (77, False)


def test_a_row_that_cannot_be_read_any_more_at_the_intent_is_left_to_be_refused(table: ControlTable) -> None:
    run_id = table.add()
    control = table.dispatcher()
    claimed = claim_one(control)
    table.correct(run_id, None)
    assert control.intend([intent_committed(claimed)]) == set()
    assert control.resume([claimed.entry_id]) == []
    assert ids(control) == [run_id]


def test_the_others_are_granted(table: ControlTable) -> None:
    first, second = table.add(), table.add()
    control = table.dispatcher()
    entries = {entry.run_id: entry for entry in control.claim(seen(control))}
    table.correct(first, 2002)
    granted = control.intend([intent_committed(entry) for entry in entries.values()])
    assert granted == {entries[second].entry_id}
    assert control.resume([entries[first].entry_id])[0].job_id == 2002


def test_a_row_that_was_only_touched_is_sent_as_it_was_claimed(table: ControlTable) -> None:
    run_id = table.add()
    control = table.dispatcher()
    claimed = claim_one(control)
    table.touch(run_id)
    assert control.intend([intent_committed(claimed)]) == {claimed.entry_id}
    table.touch(run_id)
    control.record([accepted(claimed)])
    (closed,) = control.close([claimed.entry_id])
    assert (closed.superseded, table.status(run_id)) == (False, "SCHEDULED")


def test_what_is_in_doubt_comes_with_how_its_row_was_corrected(table: ControlTable) -> None:
    run_id = table.add()
    sent = _in_doubt(table, table.dispatcher())
    table.rename(run_id, "corrected.csv")
    rescuer = table.dispatcher()
    (entry,) = rescuer.rescue(10)
    assert entry.parameters == sent.parameters
    assert entry.idempotency_token == sent.idempotency_token
    assert entry.correction == "FILE_NAME 'corrected.csv' instead of 'orders.csv'"
    assert entry.asks is not None
    assert entry.asks.parameters["FILE_NAME"] == "corrected.csv"
    assert rescuer.intend([intent_committed(entry)]) == set(), "the former call must not be made again"


def test_corrected_back_is_not_corrected(table: ControlTable) -> None:
    run_id = table.add()
    _in_doubt(table, table.dispatcher())
    table.rename(run_id, "corrected.csv")
    table.rename(run_id, "orders.csv")
    rescuer = table.dispatcher()
    (entry,) = rescuer.rescue(10)
    assert (entry.correction, entry.asks) == ("", None)
    assert rescuer.intend([intent_committed(entry)]) == {entry.entry_id}


def test_a_superseded_entry_is_closed_and_its_row_is_taken_anew(table: ControlTable) -> None:
    run_id = table.add()
    sent = _in_doubt(table, table.dispatcher())
    table.correct(run_id, 2002)
    rescuer = table.dispatcher()
    (entry,) = rescuer.rescue(10)
    rescuer.record([_superseded(entry, 5)])
    assert table.status(run_id) == "WAITING"
    anew = claim_one(rescuer)
    assert (anew.generation, anew.job_id, anew.earlier_run_ids) == (2, 2002, (5,))
    assert anew.note == "run 5 was started before the row was corrected"
    assert anew.idempotency_token != sent.idempotency_token
    send(rescuer, anew)
    told = rescuer.close([entry.entry_id, anew.entry_id])
    assert [(item.state.value, item.superseded) for item in told] == [("WITHDRAWN", True), ("SCHEDULED", False)]


def test_a_row_corrected_after_its_answer_is_not_marked_with_it(table: ControlTable) -> None:
    run_id = table.add()
    control = table.dispatcher()
    entry = claim_one(control)
    send(control, entry)
    table.rename(run_id, "corrected.csv")
    (closed,) = control.close([entry.entry_id])
    assert (closed.superseded, closed.accepted_run_id) == (True, 5)
    assert table.status(run_id) == "WAITING"
    anew = claim_one(control)
    assert (anew.generation, anew.parameters["FILE_NAME"]) == (2, "corrected.csv")
    assert "new run 5" in anew.note
    assert "corrected.csv" in anew.note


def test_so_does_the_heir_of_a_dispatcher_that_died_before_closing(table: ControlTable) -> None:
    run_id = table.add()
    control, rescuer = table.dispatcher(), table.dispatcher()
    entry = claim_one(control)
    send(control, entry)
    table.die(control)
    table.correct(run_id, 2002)
    (closed,) = rescuer.close([left.entry_id for left in rescuer.rescue(10)])
    assert closed.superseded
    assert claim_one(rescuer).job_id == 2002


def test_a_refusal_does_not_meet_what_the_row_says_now(table: ControlTable) -> None:
    run_id = table.add()
    control = table.dispatcher()
    entry = claim_one(control)
    control.intend([intent_committed(entry)])
    control.record([quarantined(entry)])
    table.correct(run_id, 2002)
    assert control.close([entry.entry_id])[0].superseded
    assert table.status(run_id) == "WAITING"
    assert claim_one(control).job_id == 2002


def test_a_row_that_names_its_own_new_run_was_not_corrected(table: ControlTable) -> None:
    """Its own run wrote it, or somebody who saw it: what it asks for comes after that run."""
    run_id = table.add()
    control = table.dispatcher()
    entry = claim_one(control)
    send(control, entry)
    table.name_run(run_id, 5)
    (closed,) = control.close([entry.entry_id])
    assert (closed.state, closed.superseded) == (EntryState.SCHEDULED, False)


def test_a_row_that_left_waiting_was_not_corrected(table: ControlTable) -> None:
    run_id = table.add()
    _in_doubt(table, table.dispatcher())
    table.rename(run_id, "corrected.csv")
    table.set_status(run_id, "CANCELED")
    (entry,) = table.dispatcher().rescue(10)
    assert (entry.waiting, entry.correction) == (False, "")


def test_a_row_that_is_gone_was_not_corrected(table: ControlTable) -> None:
    run_id = table.add()
    _in_doubt(table, table.dispatcher())
    table.remove(run_id)
    (entry,) = table.dispatcher().rescue(10)
    assert (entry.waiting, entry.correction) == (False, "")


def test_the_ledger_tells_whose_a_run_is(table: ControlTable) -> None:
    first, second = table.add(), table.add(previous=5)
    control = table.dispatcher()
    entries = {entry.run_id: entry for entry in control.claim(seen(control))}
    assert control.known_runs([5, 6]) == []
    send(control, entries[first])
    assert [(item.run_id, item.unresolved) for item in control.known_runs([5, 6])] == [(first, False)]
    control.intend([intent_committed(entries[second])])
    known = control.known_runs([5])
    assert {(item.run_id, item.unresolved) for item in known} == {(first, False), (second, True)}
    assert {item.generation for item in known} == {1}
    assert control.known_runs([]) == []


def _found(entry: Entry, run_id: int) -> Change:
    """An adoption by a search, which is only a read."""
    return replace(accepted(entry, run_id), outcome=Outcome.ADOPTED, found=True, events=(*ANSWER, Event("adopted")))


def _two_in_doubt(table: ControlTable, first: ControlPlane, second: ControlPlane) -> tuple[Entry, Entry]:
    """Two rows whose answers were lost, one in the hands of each."""
    pair = []
    for control in (first, second):
        run_id = table.add()
        (entry,) = control.claim([job for job in seen(control) if job.run_id == run_id])
        assert control.intend([intent_committed(entry)]) == {entry.entry_id}
        pair.append(entry)
    return pair[0], pair[1]


def test_a_run_that_was_found_is_not_taken_when_another_row_has_it_by_now(table: ControlTable) -> None:
    control, other = table.dispatcher(), table.dispatcher()
    mine, others = _two_in_doubt(table, control, other)
    assert control.known_runs([5]) == other.known_runs([5]) == []
    assert other.record([_found(others, 5)]) == set()
    assert control.record([_found(mine, 5)]) == {mine.entry_id}
    assert [item.entry_id for item in control.known_runs([5])] == [others.entry_id]
    (as_before,) = control.resume([mine.entry_id])
    assert as_before.state is EntryState.SENDING
    assert control.record([_found(mine, 6)]) == set()
    assert [item.entry_id for item in control.known_runs([6])] == [mine.entry_id]
    control.close([mine.entry_id])
    assert table.status(mine.run_id) == "SCHEDULED"


def test_two_rows_that_find_one_run_at_once_do_not_share_it(table: ControlTable) -> None:
    control = table.dispatcher()
    first, second = _two_in_doubt(table, control, control)
    assert control.record([_found(first, 5), _found(second, 5)]) == {second.entry_id}
    assert [item.entry_id for item in control.known_runs([5])] == [first.entry_id]


def test_a_run_that_is_answered_at_once_is_not_found_for_another_row(table: ControlTable) -> None:
    control = table.dispatcher()
    first, second = _two_in_doubt(table, control, control)
    assert control.record([_found(first, 5), accepted(second, 5)]) == {first.entry_id}


def test_an_answer_of_the_workspace_is_recorded_whoever_found_the_run(table: ControlTable) -> None:
    """It names the run of this row's own token: there is nothing to doubt."""
    control = table.dispatcher()
    first, second = _two_in_doubt(table, control, control)
    assert control.record([_found(first, 5)]) == set()
    assert control.record([accepted(second, 5)]) == set()
    assert {item.entry_id for item in control.known_runs([5])} == {first.entry_id, second.entry_id}
