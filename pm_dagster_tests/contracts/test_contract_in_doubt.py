"""The ledger carries out the transitions of ``in_doubt``: each state of a call, and each event."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest

from pm_dagster.dispatch.in_doubt import (
    TRANSITIONS,
    CallEvent,
    CallState,
    answer_lost,
    call_state,
    call_state_of,
    intent_committed,
    released,
    rescued,
)
from pm_dagster.dispatch.model import Entry, EntryState, Outcome
from pm_dagster.dispatch.ports import Change, ControlPlane, Event
from pm_dagster_tests.contracts.control_table import ControlTable
from pm_dagster_tests.contracts.steps import ANSWER, accepted, claim_one, seen

#: What a call cannot meet: no answer without an intent, and nothing is recorded of what is answered.
IMPOSSIBLE = {
    (CallState.NOT_SENT, CallEvent.ANSWER),
    (CallState.NOT_SENT, CallEvent.LOSS),
    (CallState.ANSWERED, CallEvent.ANSWER),
    (CallState.ANSWERED, CallEvent.REFUSAL),
    (CallState.ANSWERED, CallEvent.LOSS),
    (CallState.ANSWERED, CallEvent.RESOLUTION),
}


def brought_to(table: ControlTable, control: ControlPlane, state: CallState, previous: int | None) -> Entry:
    """An entry of this dispatcher whose call is in this state, as the dispatcher knows it."""
    table.add(previous=previous)
    entry = claim_one(control)
    if state is CallState.NOT_SENT:
        return entry
    assert control.intend([intent_committed(entry)]) == {entry.entry_id}
    entry = intent_committed(entry, fresh_run=False, latest_repair_id=None)
    if state is CallState.IN_DOUBT:
        control.record([Change(entry.entry_id, ANSWER, ambiguous=True)])
        return answer_lost(entry)
    if state is CallState.ANSWERED:
        control.record([accepted(entry)])
        return replace(entry, state=EntryState.ACCEPTED)
    return entry


def _intend(_table: ControlTable, control: ControlPlane, entry: Entry) -> None:
    control.intend([intent_committed(entry)])


def _answer(_table: ControlTable, control: ControlPlane, entry: Entry) -> None:
    control.record([accepted(entry)])


def _refuse(_table: ControlTable, control: ControlPlane, entry: Entry) -> None:
    control.record([Change(entry.entry_id, ANSWER, state=released(entry, EntryState.CLAIMED))])


def _lose(_table: ControlTable, control: ControlPlane, entry: Entry) -> None:
    control.record([Change(entry.entry_id, ANSWER, ambiguous=True)])


def _resolve(_table: ControlTable, control: ControlPlane, entry: Entry) -> None:
    found = Change(
        entry.entry_id,
        (Event("adopted", "found"),),
        EntryState.ACCEPTED,
        Outcome.ADOPTED,
        accepted_run_id=5,
        reason="found",
        found=True,
    )
    assert control.record([found]) == set()


def _withdraw(table: ControlTable, control: ControlPlane, entry: Entry) -> None:
    table.set_status(entry.run_id, "CANCELED")
    # Only a call in doubt is made again although the row left WAITING: it says what the first one did.
    granted = {entry.entry_id} if call_state_of(entry) is CallState.IN_DOUBT else set()
    assert control.intend([intent_committed(entry)]) == granted


_HAPPENS: dict[CallEvent, Callable[[ControlTable, ControlPlane, Entry], None]] = {
    CallEvent.INTENT: _intend,
    CallEvent.ANSWER: _answer,
    CallEvent.REFUSAL: _refuse,
    CallEvent.LOSS: _lose,
    CallEvent.RESOLUTION: _resolve,
    CallEvent.WITHDRAWAL: _withdraw,
}


def stored(table: ControlTable, entry: Entry) -> CallState:
    """The state of the call by what the ledger has."""
    state, ambiguous = table.stored(entry.entry_id)
    return call_state(state, ambiguous=ambiguous)


def test_each_state_and_event_is_named_or_impossible() -> None:
    assert set(TRANSITIONS) | IMPOSSIBLE == set(itertools.product(CallState, CallEvent))
    assert not set(TRANSITIONS) & IMPOSSIBLE


@pytest.mark.parametrize("previous", [None, 7], ids=["new", "repair"])
@pytest.mark.parametrize(
    ("state", "event"), [pair for pair in TRANSITIONS if pair[1] is not CallEvent.RESCUE], ids=lambda each: each.value
)
def test_the_ledger_takes_each_transition(
    table: ControlTable, state: CallState, event: CallEvent, previous: int | None
) -> None:
    control = table.dispatcher()
    entry = brought_to(table, control, state, previous)
    assert stored(table, entry) is state
    _HAPPENS[event](table, control, entry)
    assert stored(table, entry) is TRANSITIONS[state, event]
    if TRANSITIONS[state, event] is CallState.IN_DOUBT:
        # In no other state would it be left alone by a claim.
        assert table.stored(entry.entry_id) == (EntryState.SENDING, True)


@pytest.mark.parametrize("state", CallState, ids=lambda each: each.value)
def test_who_rescues_an_entry_reads_a_call_without_an_answer_as_in_doubt(table: ControlTable, state: CallState) -> None:
    dead, rescuer = table.dispatcher(), table.dispatcher()
    entry = brought_to(table, dead, state, None)
    assert rescuer.resume([entry.entry_id]) == []
    table.die(dead)
    (read,) = rescuer.resume([entry.entry_id])
    assert call_state_of(read) is TRANSITIONS[state, CallEvent.RESCUE]
    assert call_state_of(rescued(entry)) is TRANSITIONS[state, CallEvent.RESCUE]


@pytest.mark.parametrize("state", CallState, ids=lambda each: each.value)
def test_only_a_call_that_was_not_sent_is_claimed_anew(table: ControlTable, state: CallState) -> None:
    dead, other = table.dispatcher(), table.dispatcher()
    table.add(status="RUNNING")
    brought_to(table, dead, state, None)
    table.die(dead)
    assert len(other.claim(seen(other))) == (state is CallState.NOT_SENT)


@pytest.mark.parametrize("state", [CallState.SENT, CallState.IN_DOUBT], ids=lambda each: each.value)
def test_a_call_that_is_put_off_stays_in_doubt_until_it_is_resolved(table: ControlTable, state: CallState) -> None:
    control = table.dispatcher()
    entry = brought_to(table, control, state, 7)
    later = released(entry, EntryState.DEFERRED)
    control.record([Change(entry.entry_id, ANSWER, later, Outcome.DEFERRED, reason="later", defer_seconds=600.0)])
    expected = CallState.NOT_SENT if state is CallState.SENT else CallState.IN_DOUBT
    assert stored(table, entry) is expected is TRANSITIONS[state, CallEvent.REFUSAL]
    assert table.stored(entry.entry_id)[0] is (EntryState.DEFERRED if state is CallState.SENT else EntryState.SENDING)
