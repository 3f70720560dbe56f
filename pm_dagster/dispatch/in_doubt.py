"""Whether a call for a row may have taken effect unseen: the four states of a call, and all that changes them.

An entry makes at most one call at a time that starts something (run-now or a repair). The call is

* **not sent**: nothing was sent for the entry, or what was sent was definitely refused;
* **sent**: the intent is committed, and the dispatcher that committed it waits for the answer;
* **in doubt**: the answer was lost, or that dispatcher died. The call may have taken effect. A new run is only asked
  for again with the same token, a repair only after the history was read, and the row is neither refused nor let go;
* **answered**: the run is known, the row is refused, or it is not wanted any more.

``TRANSITIONS`` is the whole of it; the other functions read it. The ledger keeps a state in two columns: ``state`` and
``ambiguous``. Its statements carry out the same transitions, which a contract test walks on Postgres: the guards of
``intend`` and ``record``, what a rescue may take, and how an entry is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum

from pm_dagster.dispatch.model import Entry, EntryState
from pm_dagster.errors import (
    AuthenticationFailed,
    ConfigurationError,
    Defect,
    ProcessManagerError,
    Refused,
    Throttled,
    WorkspaceUnavailable,
)


class CallState(StrEnum):
    """What is known of an entry's call."""

    NOT_SENT = "not sent"
    SENT = "sent"
    IN_DOUBT = "in doubt"
    ANSWERED = "answered"


class CallEvent(StrEnum):
    """What happens to an entry's call."""

    #: The intent is committed; the call follows as soon as a thread is free.
    INTENT = "intent"
    #: The workspace took the call, and said which run or repair it is.
    ANSWER = "answer"
    #: The workspace definitely did not take the call, and it is not made again at once; or the call never left.
    REFUSAL = "refusal"
    #: No usable answer to a call that reached the workspace, or may have.
    LOSS = "loss"
    #: The dispatcher died, and another one takes the entry.
    RESCUE = "rescue"
    #: The run's history, or a search among the job's runs, shows what stands for the row.
    RESOLUTION = "resolution"
    #: The row left WAITING, as seen when the intent was to be committed.
    WITHDRAWAL = "withdrawal"


_N, _S, _D, _A = CallState.NOT_SENT, CallState.SENT, CallState.IN_DOUBT, CallState.ANSWERED

#: What is not named here cannot happen.
TRANSITIONS: Mapping[tuple[CallState, CallEvent], CallState] = {
    (_N, CallEvent.INTENT): _S,
    (_N, CallEvent.REFUSAL): _N,
    (_N, CallEvent.RESCUE): _N,
    (_N, CallEvent.RESOLUTION): _A,
    (_N, CallEvent.WITHDRAWAL): _A,
    (_S, CallEvent.INTENT): _S,
    (_S, CallEvent.ANSWER): _A,
    (_S, CallEvent.REFUSAL): _N,
    (_S, CallEvent.LOSS): _D,
    (_S, CallEvent.RESCUE): _D,
    (_S, CallEvent.RESOLUTION): _A,
    (_S, CallEvent.WITHDRAWAL): _A,
    (_D, CallEvent.INTENT): _D,
    (_D, CallEvent.ANSWER): _A,
    # A refusal speaks of the call that was refused, not of the one before it.
    (_D, CallEvent.REFUSAL): _D,
    (_D, CallEvent.LOSS): _D,
    (_D, CallEvent.RESCUE): _D,
    (_D, CallEvent.RESOLUTION): _A,
    # What may have taken effect is found out before the row is let go.
    (_D, CallEvent.WITHDRAWAL): _D,
    (_A, CallEvent.INTENT): _A,
    (_A, CallEvent.RESCUE): _A,
    (_A, CallEvent.WITHDRAWAL): _A,
}

#: The states of an entry for which a call may still be made.
TO_SEND = (EntryState.CLAIMED, EntryState.SENDING)
#: The states of an entry that is answered, and that the control table does not show yet.
TO_CLOSE = (EntryState.ACCEPTED, EntryState.QUARANTINED)
_ANSWERED = (*TO_CLOSE, EntryState.SCHEDULED, EntryState.WITHDRAWN)


def call_state(state: EntryState, *, ambiguous: bool) -> CallState:
    """The state of the call by the two columns of the ledger, as the dispatcher that owns the entry sees it."""
    if state in _ANSWERED:
        return CallState.ANSWERED
    if ambiguous:
        return CallState.IN_DOUBT
    return CallState.SENT if state is EntryState.SENDING else CallState.NOT_SENT


def call_state_of(entry: Entry) -> CallState:
    """The state of the entry's call."""
    return call_state(entry.state, ambiguous=entry.ambiguous)


def is_in_doubt(entry: Entry) -> bool:
    """Whether a call may have taken effect unseen."""
    return call_state_of(entry) is CallState.IN_DOUBT


def has_intent(entry: Entry) -> bool:
    """Whether an intent stands, so that ``sent_repair_id`` is what the last repair named."""
    return entry.state is EntryState.SENDING


def intent_committed(entry: Entry, *, fresh_run: bool = False, latest_repair_id: int | None = None) -> Entry:
    """The entry once the intent of its call is committed.

    Args:
        entry: The entry before.
        fresh_run: Whether a repair row gets a new run instead.
        latest_repair_id: What a repair names; None for a first repair, and for a new run.
    """
    return replace(
        entry,
        state=EntryState.SENDING,
        fresh_run=entry.fresh_run or fresh_run,
        sent_repair_id=latest_repair_id,
    )


def answer_lost(entry: Entry) -> Entry:
    """The entry once an answer to its call was lost."""
    return replace(entry, ambiguous=True)


def rescued(entry: Entry) -> Entry:
    """The entry as whoever reads it from the ledger takes it: a call without a recorded answer is in doubt."""
    if TRANSITIONS[call_state_of(entry), CallEvent.RESCUE] is CallState.IN_DOUBT:
        return replace(entry, ambiguous=True)
    return entry


def released(entry: Entry, state: EntryState) -> EntryState | None:
    """The state to write for an entry whose call was refused or is put off; None leaves it as it is.

    ``state`` is CLAIMED or DEFERRED. A call that is in doubt stays SENDING: only its resolution may release it.
    """
    doubtful = TRANSITIONS[call_state_of(entry), CallEvent.REFUSAL] is CallState.IN_DOUBT
    return None if doubtful and has_intent(entry) else state


def is_lost(error: ProcessManagerError | None) -> bool:
    """Whether a call that ended so may have taken effect unseen."""
    return isinstance(error, (WorkspaceUnavailable, Defect)) and error.maybe_applied


def had_no_effect(error: ProcessManagerError) -> bool:
    """Whether a call that ended so certainly started nothing."""
    if isinstance(error, (WorkspaceUnavailable, Defect)):
        return not error.maybe_applied
    return isinstance(error, (AuthenticationFailed, ConfigurationError, Refused, Throttled))
