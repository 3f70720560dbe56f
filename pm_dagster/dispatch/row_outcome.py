"""How one row leaves a dispatch, and what the ledger is told about it."""

from __future__ import annotations

from dataclasses import dataclass

from pm_dagster.dispatch import decisions as steps
from pm_dagster.dispatch.decisions import Decision
from pm_dagster.dispatch.ledger_entry import Entry, EntryState
from pm_dagster.dispatch.ports import Change, Event, Outcome


@dataclass(frozen=True)
class RowOutcome:
    """The outcome of one row: what happened, why, and the run and repair that now stand for it."""

    entry: Entry
    outcome: Outcome
    reason: str
    run_id: int | None = None
    repair_id: int | None = None
    succeeded: bool = False
    defer_seconds: float = 0.0
    counts_as_attempt: bool = False
    rule: str = ""
    superseded: bool = False


def outcome_of(entry: Entry, decision: Decision) -> RowOutcome | None:
    """The outcome that a decision means, or None when the row goes on."""
    if isinstance(decision, steps.Accept):
        return RowOutcome(entry, Outcome.ACCEPTED, decision.reason, decision.run_id, decision.repair_id)
    if isinstance(decision, steps.Adopt):
        return RowOutcome(
            entry, Outcome.ADOPTED, decision.reason, decision.run_id, decision.repair_id, succeeded=decision.succeeded
        )
    if isinstance(decision, steps.Defer | steps.Quarantine):
        return refused_or_put_off(entry, decision)
    if isinstance(decision, steps.Withdraw):
        return RowOutcome(entry, Outcome.WITHDRAWN, decision.reason)
    if isinstance(decision, steps.Supersede):
        return RowOutcome(
            entry, Outcome.WITHDRAWN, decision.reason, decision.run_id, decision.repair_id, superseded=True
        )
    return None


def refused_or_put_off(entry: Entry, decision: steps.Quarantine | steps.Defer) -> RowOutcome:
    """The outcome of a row for which nothing was started."""
    if isinstance(decision, steps.Quarantine):
        return RowOutcome(entry, Outcome.QUARANTINED, decision.reason, rule=decision.rule)
    return RowOutcome(
        entry,
        Outcome.DEFERRED,
        decision.reason,
        defer_seconds=decision.seconds,
        counts_as_attempt=decision.counts,
    )


def _state_after(outcome: RowOutcome) -> EntryState | None:
    if outcome.outcome is Outcome.DEFERRED:
        # A call that may have taken effect stays SENDING: only its resolution may release it.
        unresolved = outcome.entry.state is EntryState.SENDING and outcome.entry.ambiguous
        return None if unresolved else EntryState.DEFERRED
    return {
        Outcome.ACCEPTED: EntryState.ACCEPTED,
        Outcome.ADOPTED: EntryState.ACCEPTED,
        Outcome.QUARANTINED: EntryState.QUARANTINED,
        Outcome.WITHDRAWN: EntryState.WITHDRAWN,
    }[outcome.outcome]


def change_for(outcome: RowOutcome, call: Event | None, page_url: str | None, *, ambiguous: bool) -> Change:
    """What the ledger is to record for an outcome, with its reason and, for a refusal, the rule that made it final.

    ``call`` is the call that led to it, None when that is recorded already.
    """
    detail = f"{outcome.reason} [final: {outcome.rule}]" if outcome.rule else outcome.reason
    told = Event("superseded" if outcome.superseded else outcome.outcome.value, detail)
    return Change(
        entry_id=outcome.entry.entry_id,
        events=(told,) if call is None else (call, told),
        state=_state_after(outcome),
        outcome=outcome.outcome,
        succeeded=outcome.succeeded,
        accepted_run_id=outcome.run_id,
        accepted_repair_id=outcome.repair_id,
        page_url=page_url,
        reason=outcome.reason,
        defer_seconds=outcome.defer_seconds if outcome.outcome is Outcome.DEFERRED else None,
        counts_as_attempt=outcome.counts_as_attempt,
        ambiguous=ambiguous,
        rule=outcome.rule or None,
        superseded=outcome.superseded,
    )
