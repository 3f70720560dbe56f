"""The steps that contract tests take again and again."""

from __future__ import annotations

from pm_dagster.dispatch.in_doubt import intent_committed
from pm_dagster.dispatch.model import Entry, EntryState, Outcome
from pm_dagster.dispatch.ports import Change, ControlPlane, Event
from pm_dagster.dispatch.waiting_job import WaitingJob, sort_rows

ANSWER = (Event("answer", "run 5"),)


def seen(control: ControlPlane, limit: int = 100) -> list[WaitingJob]:
    """The jobs that a dispatch would find."""
    return sort_rows(control.waiting(limit))[0]


def ids(control: ControlPlane, limit: int = 100) -> list[object]:
    return [row.run_id for row in control.waiting(limit)]


def claim_one(control: ControlPlane) -> Entry:
    (entry,) = control.claim(seen(control))
    return entry


def accepted(entry: Entry, run_id: int = 5, *, succeeded: bool = False) -> Change:
    return Change(
        entry.entry_id,
        ANSWER,
        state=EntryState.ACCEPTED,
        outcome=Outcome.ACCEPTED,
        succeeded=succeeded,
        accepted_run_id=run_id,
        page_url=f"https://host/run/{run_id}",
        reason=f"new run {run_id}",
    )


def deferred(entry: Entry, seconds: float, *, counts: bool = False) -> Change:
    return Change(
        entry.entry_id,
        (Event("deferred"),),
        state=EntryState.DEFERRED,
        outcome=Outcome.DEFERRED,
        reason="later",
        defer_seconds=seconds,
        counts_as_attempt=counts,
    )


def quarantined(entry: Entry) -> Change:
    return Change(
        entry.entry_id,
        (Event("quarantined"),),
        state=EntryState.QUARANTINED,
        outcome=Outcome.QUARANTINED,
        reason="unknown job",
    )


def send(control: ControlPlane, entry: Entry) -> None:
    assert control.intend([intent_committed(entry)]) == {entry.entry_id}
    control.record([accepted(entry)])
