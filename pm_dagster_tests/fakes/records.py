"""What each step writes into one record of the ledger. Whether the step is allowed is the control plane's."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from pm_dagster.dispatch.in_doubt import TO_SEND, intent_committed
from pm_dagster.dispatch.model import Entry, EntryState, KnownRun, Outcome
from pm_dagster.dispatch.ports import Change, Closed, Event
from pm_dagster.dispatch.waiting_job import Branch, WaitingJob
from pm_dagster_tests.fakes.database import Record, Row


def claimed(job: WaitingJob) -> Entry:
    """What a claim writes; ids and token come from the ledger."""
    state, parameters = EntryState.CLAIMED, dict(job.parameters)
    return Entry(0, job.run_id, 0, job.branch, state, job.job_id, job.previous_run_id, parameters, "")


def refused(run_id: int, branch: Branch) -> Entry:
    """What a refusal writes; it has no token, for nothing is sent."""
    return Entry(0, run_id, 0, branch, EntryState.QUARANTINED, 0, None, {}, "")


def commit(record: Record, entry: Entry) -> None:
    """A call is about to be made; ``entry`` says which."""
    sent = intent_committed(record.entry, fresh_run=entry.fresh_run, latest_repair_id=entry.sent_repair_id)
    record.entry = replace(sent, intent_at=sent.intent_at or datetime.now(UTC))


def withdraw(record: Record) -> None:
    """The row is no longer wanted; what may have taken effect is never withdrawn."""
    if record.entry.state in TO_SEND:
        record.entry = replace(record.entry, state=EntryState.WITHDRAWN)
        record.open, record.outcome = False, Outcome.WITHDRAWN
        record.reason = "the row left WAITING before anything was sent"


def apply(record: Record, change: Change) -> None:
    """Write what was learned."""
    record.events += change.events
    if change.only_tells:
        return
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
    record.superseded = record.superseded or change.superseded


def supersede(record: Record, words: str) -> None:
    """The row was corrected: the entry is closed, and the control table is not written."""
    record.entry = replace(record.entry, state=EntryState.WITHDRAWN)
    record.open, record.superseded = False, True
    record.reason = "; ".join(text for text in (record.reason, f"the row was corrected ({words})") if text)
    record.events.append(Event("superseded", record.reason))


def known(record: Record, run_id: int, table: str) -> list[KnownRun]:
    """What an entry says of a run: that it is its work, or that it may be repairing it."""
    entry = record.entry
    number = (run_id, entry.entry_id, table, entry.run_id, entry.generation)
    if record.accepted_run_id == run_id:
        return [KnownRun(*number, record.accepted_repair_id, record.superseded)]
    repairing = record.open and entry.state is EntryState.SENDING and not entry.fresh_run
    return [KnownRun(*number, unresolved=True)] if repairing and entry.previous_run_id == run_id else []


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
        superseded=record.superseded,
    )


def asked_again(record: Record, row: Row) -> bool:
    """Whether the row names the run that was only just started for it: somebody saw it and asks for more."""
    run = record.accepted_run_id
    return run is not None and row.raw.previous_run_id == run and record.entry.previous_run_id != run
