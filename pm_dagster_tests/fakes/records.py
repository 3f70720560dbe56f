"""What each step writes into one record of the ledger. Keep out: whether the step is allowed."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from pm_dagster.core.ledger_entry import Entry, EntryState
from pm_dagster.core.ports import Change, Closed, Intent, Outcome
from pm_dagster.core.waiting_job import Branch, WaitingJob
from pm_dagster_tests.fakes.database import Record, Row


def claimed(job: WaitingJob) -> Entry:
    """What a claim writes; ids and token come from the ledger."""
    state, parameters = EntryState.CLAIMED, dict(job.parameters)
    return Entry(0, job.run_id, 0, job.branch, state, job.job_id, job.previous_run_id, parameters, "")


def refused(run_id: int, branch: Branch) -> Entry:
    """What a refusal writes; it has no token, for nothing is sent."""
    return Entry(0, run_id, 0, branch, EntryState.QUARANTINED, 0, None, {}, "")


def commit(record: Record, intent: Intent) -> None:
    """A call is about to be made."""
    record.entry = replace(
        record.entry,
        state=EntryState.SENDING,
        fresh_run=record.entry.fresh_run or intent.fresh_run,
        sent_repair_id=intent.latest_repair_id,
        intent_at=record.entry.intent_at or datetime.now(UTC),
    )


def withdraw(record: Record) -> None:
    """The row is no longer wanted; what may have taken effect is never withdrawn."""
    if record.entry.state in (EntryState.CLAIMED, EntryState.SENDING):
        record.entry = replace(record.entry, state=EntryState.WITHDRAWN)
        record.open, record.outcome = False, Outcome.WITHDRAWN
        record.reason = "the row left WAITING before anything was sent"


def apply(record: Record, change: Change) -> None:
    """Write what was learned."""
    entry = record.entry
    record.entry = replace(
        entry,
        state=change.state or entry.state,
        attempts=entry.attempts + change.counts_as_attempt,
        ambiguous=entry.ambiguous or change.ambiguous,
    )
    record.outcome = change.outcome or record.outcome
    record.succeeded = record.succeeded or change.succeeded
    record.accepted_run_id = change.accepted_run_id or record.accepted_run_id
    record.accepted_repair_id = change.accepted_repair_id or record.accepted_repair_id
    record.page_url = change.page_url or record.page_url
    record.reason = change.reason or record.reason
    wait = change.defer_seconds
    record.not_before = None if wait is None else datetime.now(UTC) + timedelta(seconds=wait)
    record.open = record.open and record.entry.state is not EntryState.WITHDRAWN
    record.events += change.events


def closed(record: Record, row: Row | None) -> Closed:
    """What is told of a closed entry, and of its row if it is still there."""
    return Closed(
        entry_id=record.entry.entry_id,
        run_id=record.entry.run_id,
        state=record.entry.state,
        outcome=record.outcome,
        accepted_run_id=record.accepted_run_id,
        accepted_repair_id=record.accepted_repair_id,
        page_url=record.page_url,
        reason=record.reason,
        control_status=row.status if row else None,
    )


def asked_again(record: Record, row: Row) -> bool:
    """Whether the row names the run that was only just started for it: somebody saw it and asks for more."""
    run = record.accepted_run_id
    return run is not None and row.raw.previous_run_id == run and record.entry.previous_run_id != run
