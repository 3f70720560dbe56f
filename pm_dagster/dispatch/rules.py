"""What to do next for a row, given what is known: the rules of the dispatch, as pure functions.

Put here: the choice between adopting, repairing, starting afresh, waiting and refusing. Keep out: doing it.
A repair is decided by the run's history, never by the text of a message.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from pm_dagster.dispatch import corrections
from pm_dagster.dispatch.answers import Kind
from pm_dagster.dispatch.corrections import Whose
from pm_dagster.dispatch.decisions import (
    Adopt,
    Again,
    Decision,
    Defer,
    FindRun,
    LookUp,
    Quarantine,
    RepairRun,
    StartRun,
    Stop,
    Withdraw,
)
from pm_dagster.dispatch.ledger_entry import Entry, EntryState
from pm_dagster.dispatch.ports import Call
from pm_dagster.dispatch.run_state import RunSnapshot, Standing
from pm_dagster.errors import (
    AuthenticationFailed,
    ProcessManagerError,
    Refused,
    Throttled,
    WorkspaceUnavailable,
)
from pm_dagster.text import clause

#: The only refusal that passes by itself.
_CONFLICT = 409
_NO_FRESH_RUN = "the earlier run cannot be repaired, and PM_MISSING_RUN=fail allows no fresh one"
#: No pause doubles beyond an hour: a row that is left for longer looks as if it were forgotten.
_LONGEST_PAUSE = 3600.0
#: Of a second, eighteen hours; attempts are counted without an end while a row is in doubt.
_DOUBLINGS = 16


#: A row that waits for the end of another row's run is looked at again after so many times of settling.
_SETTLINGS = 4
_NOBODYS = Whose()


@dataclass(frozen=True)
class Policy:
    """The settings that the rules depend on; see ``Settings`` for their meaning."""

    fresh_run_allowed: bool = True
    call_tries: int = 4
    call_backoff_seconds: float = 1.0
    max_attempts: int = 5
    settle_seconds: float = 30.0
    control_table: str = ""


def first_step(entry: Entry) -> Decision:
    """What an entry needs first, as it stands in the ledger."""
    unresolved = entry.state is EntryState.SENDING
    if unresolved and entry.correction:
        return FindRun() if entry.starts_new_run else LookUp()
    if unresolved and not entry.waiting and entry.starts_new_run:
        return FindRun()
    if entry.starts_new_run:
        return StartRun()
    return LookUp()


def _newer_repair(entry: Entry, run: RunSnapshot, others: Collection[int]) -> int | None:
    """The repair that came after the one our recorded intent named, if the history shows one and it may be ours.

    ``others`` are known to be other rows'. After a clean refusal it is somebody else's, and counts for what the run is
    now, as any earlier repair does.
    """
    if entry.state is not EntryState.SENDING or not entry.ambiguous:
        return None
    if entry.sent_repair_id is None:
        later = run.repair_ids
    elif entry.sent_repair_id in run.repair_ids:
        later = run.repair_ids[run.repair_ids.index(entry.sent_repair_id) + 1 :]
    else:
        later = ()
    return next((repair_id for repair_id in reversed(later) if repair_id not in others), None)


def _history_is_stale(entry: Entry, run: RunSnapshot) -> bool:
    known = entry.sent_repair_id if entry.state is EntryState.SENDING else None
    return known is not None and known not in run.repair_ids


def after_look_up(entry: Entry, run: RunSnapshot, policy: Policy, known: Whose = _NOBODYS) -> Decision:
    """Decide a repair row by the run it had, and by whose work that run is."""
    newer = _newer_repair(entry, run, known.repair_ids)
    if entry.correction:
        stale = _history_is_stale(entry, run)
        return corrections.after_former_look_up(entry, run, newer, stale=stale, seconds=policy.settle_seconds)
    if newer is not None:
        return Adopt(run.run_id, newer, f"repair {newer} was already started; run is {run.words}")
    if _history_is_stale(entry, run):
        return Defer(
            f"the history of run {run.run_id} does not yet show repair {entry.sent_repair_id}", policy.settle_seconds
        )
    if known.other and (run.standing is Standing.ACTIVE or (known.unresolved and not entry.ambiguous)):
        return corrections.under_way_for_another(run, known.other, _SETTLINGS * policy.settle_seconds)
    if run.standing is Standing.ACTIVE:
        return Adopt(run.run_id, run.latest_repair_id, f"run {run.run_id} is already under way ({run.words})")
    if not entry.waiting:
        return Withdraw(f"the row left WAITING while its repair was unresolved; run {run.run_id} is {run.words}")
    if run.standing is Standing.SUCCEEDED and known.other:
        return _without_run(f"run {run.run_id} succeeded for {known.other}, not for this row", policy)
    if run.standing is Standing.SUCCEEDED:
        reason = f"run {run.run_id} already succeeded; nothing to repair"
        return Adopt(run.run_id, run.latest_repair_id, reason, succeeded=True)
    if run.standing is Standing.NEVER_RAN:
        return _without_run(f"run {run.run_id} never ran ({run.words})", policy)
    return RepairRun(run.latest_repair_id)


def _without_run(what: str, policy: Policy) -> Decision:
    if policy.fresh_run_allowed:
        return StartRun(f"{what}; starting a fresh run")
    return Quarantine(f"{what}, and a fresh run is not allowed (PM_MISSING_RUN=fail)", _NO_FRESH_RUN)


def after_find(entry: Entry, run_id: int | None, refusal: str = "") -> Decision:
    """Decide by the search for a run whose answer was lost; ``run_id`` is no other row's.

    ``refusal`` is what the workspace said to run-now since.
    """
    if entry.correction:
        return corrections.after_former_find(entry, run_id)
    if run_id is not None and run_id not in entry.earlier_run_ids:
        return Adopt(run_id, None, f"run {run_id} carries this row's parameters; its answer had been lost")
    if not entry.waiting:
        return Withdraw("the row left WAITING before its run was confirmed, and the job shows no run for it")
    words = f": {refusal}" if refusal else ""
    return Quarantine(f"run-now was refused{words}; an earlier answer was lost, and the job shows no run for this row")


def after_failure(
    entry: Entry, call: Call, error: ProcessManagerError, tries: int, refusals: int, policy: Policy, refusal: str = ""
) -> Decision:
    """Decide after a call that failed.

    ``tries`` counts the attempts of this call without a usable answer; ``refusals`` the clean refusals of this call in
    this dispatch, this one included; ``refusal`` is what the workspace said to run-now before this call.
    """
    if isinstance(error, AuthenticationFailed):
        return Stop(error)
    if isinstance(error, Throttled):
        return Again(0.0)
    if isinstance(error, WorkspaceUnavailable):
        return _after_no_answer(call, error, tries, policy)
    if isinstance(error, Refused):
        return _after_refusal(entry, call, error, refusals, policy, refusal)
    return Stop(error)


def _after_no_answer(call: Call, error: WorkspaceUnavailable, tries: int, policy: Policy) -> Decision:
    pause = _doubled(policy.call_backoff_seconds, tries - 1)
    if tries >= policy.call_tries:
        return Defer(f"{call.value}: {error}", max(pause, policy.settle_seconds if error.maybe_applied else 0.0))
    if call is Call.REPAIR and error.maybe_applied:
        return LookUp(pause)
    return Again(pause)


def _after_refusal(entry: Entry, call: Call, error: Refused, refusals: int, policy: Policy, refusal: str) -> Decision:
    reason = f"{call.value} was refused: {error}"
    if refusal:
        reason = f"{reason}; run-now had been refused: {refusal}"
    if call is Call.GET_RUN and error.gone:
        return _after_gone(entry, error, policy)
    if call is Call.REPAIR:
        return _after_refused_repair(entry, error, reason, refusals, policy)
    if error.kind is Kind.FORBIDDEN and refusals <= 1:
        # A right that one holds is denied now and then, and granted a moment later.
        return Again(policy.call_backoff_seconds)
    if entry.ambiguous:
        return _in_doubt(entry, call, error, reason, policy)
    if error.status == _CONFLICT:
        return _count(entry, reason, policy)
    if error.kind is Kind.UNKNOWN:
        return _count_unknown(entry, reason, policy)
    return Quarantine(reason)


def _after_gone(entry: Entry, error: Refused, policy: Policy) -> Decision:
    what = f"run {entry.previous_run_id} does not exist any more ({clause(str(error))})"
    if entry.correction:
        return corrections.unresolvable(entry, what)
    if not entry.waiting:
        return Withdraw(f"the row left WAITING while its repair was unresolved; {what}")
    if entry.ambiguous:
        return Quarantine(f"{what}, and whether its repair was done is not known, for the answer had been lost")
    return _without_run(what, policy)


def _in_doubt(entry: Entry, call: Call, error: Refused, reason: str, policy: Policy) -> Decision:
    """A refusal while a call may have taken effect unseen: the row is not refused before that is known."""
    last = entry.attempts + 1 >= policy.max_attempts
    if entry.correction and (last or error.gone):
        return corrections.unresolvable(entry, reason)
    passing = error.status == _CONFLICT or error.kind is Kind.UNKNOWN
    if call is Call.RUN_NOW and (last or not passing):
        return FindRun()
    pause = _doubled(policy.settle_seconds, entry.attempts)
    return Defer(f"{reason}; an earlier call may have taken effect, so the row is not given up", pause, counts=True)


def _after_refused_repair(entry: Entry, error: Refused, reason: str, refusals: int, policy: Policy) -> Decision:
    """A refused repair may mean that one is running: read again, leave it to settle, and only then give up."""
    if refusals <= 1:
        return LookUp(policy.call_backoff_seconds)
    if entry.ambiguous:
        # What refuses it may be our own repair, which a run that is read too early does not show yet.
        return _count(entry, f"{reason}; the answer to an earlier repair was lost", policy)
    if error.kind is Kind.UNKNOWN:
        return _count_unknown(entry, reason, policy)
    if entry.attempts >= 1:
        return Quarantine(reason)
    return Defer(reason, policy.settle_seconds, counts=True)


def _count_unknown(entry: Entry, reason: str, policy: Policy) -> Decision:
    """A refusal that nobody has met yet is never final the first time, whatever the settings say."""
    return _count(entry, reason, replace(policy, max_attempts=max(policy.max_attempts, 2)))


def _count(entry: Entry, reason: str, policy: Policy) -> Decision:
    if entry.attempts + 1 >= policy.max_attempts:
        return Quarantine(f"{reason} ({entry.attempts + 1} attempts)")
    return Defer(reason, _doubled(policy.settle_seconds, entry.attempts), counts=True)


def _doubled(seconds: float, times: int) -> float:
    """A setting's pause after so many doublings: at most an hour, unless the setting itself is longer."""
    return max(seconds, min(seconds * 2.0 ** min(times, _DOUBLINGS), _LONGEST_PAUSE))
