"""Between the core's records and the ledger's rows: what goes in as JSON, what comes out as a tuple.

Keep out: statements, and when they run.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pm_dagster.dispatch.in_doubt import is_in_doubt, rescued
from pm_dagster.dispatch.model import Entry, EntryState, Outcome, TokenSubject
from pm_dagster.dispatch.ports import Change, Closed, Event, Intent
from pm_dagster.dispatch.waiting_job import Branch, RefusedRow, WaitingJob
from pm_dagster.ledger.text import storable

#: Why a row is refused of which nothing was ever sent.
BROKEN_ROW = "the row cannot be read as a job to run, whatever the workspace says"


def claimed_record(job: WaitingJob, versions: Mapping[int, str]) -> dict[str, Any]:
    """What a claim writes for a waiting job; ``versions`` are those of the table's rows, read before the job was."""
    return {
        "run_id": job.run_id,
        "branch": job.branch.value,
        "state": EntryState.CLAIMED.value,
        "job_id": job.job_id,
        "previous_run_id": job.previous_run_id,
        "parameters": dict(job.parameters),
        "waiting_since": job.since and job.since.isoformat(),
        "row_version": versions.get(job.run_id),
    }


def asked_of(record: dict[str, Any]) -> TokenSubject:
    """What a claim's record asks for, as its token stands for it."""
    since = record["waiting_since"] and datetime.fromisoformat(record["waiting_since"])
    return TokenSubject(record["job_id"], record["parameters"], since)


def refused_record(row: RefusedRow, versions: Mapping[int, str]) -> dict[str, Any]:
    """What a refusal writes for a row that cannot be read."""
    return {
        "run_id": row.run_id,
        "branch": row.branch.value,
        "state": EntryState.QUARANTINED.value,
        "job_id": None,
        "previous_run_id": None,
        "parameters": {},
        "waiting_since": row.row.since and row.row.since.isoformat(),
        "outcome": Outcome.QUARANTINED.value,
        "reason": storable(row.reason),
        "rule": BROKEN_ROW,
        "row_version": None if row.run_id is None else versions.get(row.run_id),
    }


def entry_of(row: tuple[Any, ...]) -> Entry:
    """The entry of a row of the statement ``entries``."""
    (entry_id, run_id, generation, branch, state, job_id, previous, parameters, token, fresh, sent, attempts) = row[:12]
    return rescued(
        Entry(
            entry_id=entry_id,
            run_id=run_id,
            generation=generation,
            branch=Branch(branch),
            state=EntryState(state),
            job_id=job_id or 0,
            previous_run_id=previous,
            parameters=parameters,
            idempotency_token=token or "",
            fresh_run=fresh,
            sent_repair_id=sent,
            attempts=attempts,
            ambiguous=row[12],
            intent_at=row[13],
            waiting=row[14],
            earlier_run_ids=tuple(row[15]),
            note=row[16] or "",
        )
    )


def event_record(entry_id: int, event: Event) -> dict[str, Any]:
    """What an event writes."""
    return {
        "entry_id": entry_id,
        "kind": event.kind,
        "call": event.call and event.call.value,
        "status": event.status,
        "seconds": event.seconds,
        "detail": storable(event.detail),
    }


def intent_record(intent: Intent) -> dict[str, Any]:
    """What an intent writes; one in doubt is about a call that may have been made already."""
    return {
        "entry_id": intent.entry.entry_id,
        "fresh_run": intent.fresh_run,
        "latest_repair_id": intent.latest_repair_id,
        "ambiguous": is_in_doubt(intent.entry),
    }


def intent_event(intent: Intent) -> Event:
    """The event that announces a call."""
    if intent.entry.starts_new_run or intent.fresh_run:
        return Event("intent", f"run-now with token {intent.entry.idempotency_token[:12]}...")
    return Event("intent", f"repair of run {intent.entry.previous_run_id}, latest repair {intent.latest_repair_id}")


def change_record(change: Change) -> dict[str, Any]:
    """What a change writes."""
    return {
        "entry_id": change.entry_id,
        "state": change.state and change.state.value,
        "outcome": change.outcome and change.outcome.value,
        "succeeded": change.succeeded,
        "accepted_run_id": change.accepted_run_id,
        "accepted_repair_id": change.accepted_repair_id,
        "page_url": change.page_url and storable(change.page_url),
        "reason": change.reason and storable(change.reason),
        "rule": change.rule,
        "defer_seconds": change.defer_seconds,
        "attempts": int(change.counts_as_attempt),
        "ambiguous": change.ambiguous,
        "superseded": change.superseded,
    }


def closed_of(row: tuple[Any, ...]) -> Closed:
    """The entry of a row of the statement ``closed``."""
    entry_id, run_id, state, outcome, run, repair, url, reason, status, superseded = row
    what = outcome and Outcome(outcome)
    return Closed(entry_id, run_id, EntryState(state), what, run, repair, url, reason, status, superseded)
