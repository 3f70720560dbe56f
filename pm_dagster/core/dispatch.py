"""One pass over the waiting jobs: read, claim, send, close. The same under Dagster, in ``pm`` and on a cluster.

Put here: the order of the steps and what passes between them. Keep out: how a step is decided (``decisions``) or sent
(``sending``). Each step may be run again, in this process or another: it continues from the ledger.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from pm_dagster.core.attempts import Work
from pm_dagster.core.decisions import Policy, first_step
from pm_dagster.core.governor import Governor
from pm_dagster.core.ledger_entry import Entry, EntryState
from pm_dagster.core.outcomes import RowOutcome
from pm_dagster.core.ports import Call, Closed, ControlPlane, DatabricksRuns, Outcome
from pm_dagster.core.report import Report, outcome_rows, refused_rows
from pm_dagster.core.sending import Limits, Sender, Sent
from pm_dagster.core.settings import Settings
from pm_dagster.core.steps import RepairRun, StartRun
from pm_dagster.core.waiting_job import Branch, RawRow, RefusedRow, sort_rows

_ANSWERED = (Outcome.ACCEPTED, Outcome.ADOPTED, Outcome.QUARANTINED)


@dataclass(frozen=True)
class Claimed:
    """What a dispatch took: entries by branch, and the rows it refused. ``taken_over`` counts a dead dispatcher's."""

    new: list[Entry]
    repair: list[Entry]
    refused: list[RefusedRow]
    taken_over: int


@dataclass(frozen=True)
class RepairTarget:
    """An entry whose run was looked up and that needs a call: a repair naming ``latest_repair_id``, or a fresh run."""

    entry_id: int
    run_id: int
    previous_run_id: int | None
    latest_repair_id: int | None
    fresh_run: bool
    reason: str


def policy_of(settings: Settings) -> Policy:
    """The rules' numbers, from the settings."""
    return Policy(
        fresh_run_allowed=settings.missing_run == "fresh-run",
        call_tries=settings.call_tries,
        call_backoff_seconds=settings.call_backoff_seconds,
        max_attempts=settings.max_attempts,
        settle_seconds=settings.settle_seconds,
    )


class Dispatch:
    """One dispatch. ``stop`` ends it early and cleanly; ``on_outcome`` hears of each row as it is decided."""

    def __init__(
        self,
        control: ControlPlane,
        runs: DatabricksRuns,
        settings: Settings,
        *,
        stop: threading.Event | None = None,
        clock: Callable[[], float] = time.monotonic,
        on_outcome: Callable[[RowOutcome], None] = lambda _outcome: None,
    ) -> None:
        self.control = control
        self._runs = runs
        self._settings = settings
        self._stop = stop or threading.Event()
        self._clock = clock
        self._on_outcome = on_outcome
        self._began = clock()
        rates = {
            Call.RUN_NOW: settings.rate_run_now,
            Call.REPAIR: settings.rate_repair,
            Call.GET_RUN: settings.rate_get_run,
            Call.LIST_RUNS: settings.rate_get_run and min(settings.rate_get_run, 27.0),
        }
        self._governor = Governor(rates, clock)

    def read(self, limit: int | None = None) -> list[RawRow]:
        """The rows that wait, oldest first; ``limit`` defaults to the configured one. Takes nothing."""
        return self.control.waiting(limit or self._settings.dispatch_limit)

    def claim(self, rows: Sequence[RawRow]) -> Claimed:
        """Take the rows, refuse those that break their own rules, and take over what a dead dispatcher left."""
        jobs, refused = sort_rows(rows)
        inherited = self.control.take_over(self._settings.dispatch_limit)
        if refused:
            self.control.refuse(refused)
        entries = inherited + self.control.claim(jobs)
        by_branch = {branch: [entry for entry in entries if entry.branch is branch] for branch in Branch}
        return Claimed(by_branch[Branch.NEW], by_branch[Branch.REPAIR], refused, len(inherited))

    def resume(self, entry_ids: Collection[int]) -> list[Entry]:
        """Entries by id, as they stand, if they are this dispatch's or may become so."""
        return self.control.resume(entry_ids)

    def send(self, entries: Sequence[Entry]) -> Sent:
        """Take the entries to their outcome; entries whose answer is already recorded are left as they are."""
        return self._sender().send([Work(entry, first_step(entry)) for entry in _unanswered(entries)])

    def prepare(self, entries: Sequence[Entry]) -> tuple[list[RepairTarget], Sent]:
        """Look up the runs of repair entries; decide those that need no call, and return the others as targets."""
        sent = self._sender().send([Work(e, first_step(e)) for e in _unanswered(entries)], prepare_only=True)
        return [_target(work) for work in sent.prepared], sent

    def send_targets(self, targets: Sequence[RepairTarget]) -> Sent:
        """Make the call of each target that is still ours and unsent; one that was already sent is resolved first."""
        by_id = {target.entry_id: target for target in targets}
        works = [_targeted(entry, by_id[entry.entry_id]) for entry in _unanswered(self.resume(by_id))]
        return self._sender().send(works)

    def close(self, entry_ids: Collection[int]) -> list[Closed]:
        """Write the control table for the entries whose outcome is known."""
        return self.control.close(entry_ids)

    def run(self, limit: int | None = None, rows: Sequence[RawRow] | None = None) -> Report:
        """The whole pass, both branches at once, over ``rows`` where they were read elsewhere.

        Raises what its steps raise; rows closed until then stay closed.
        """
        rows = self.read(limit) if rows is None else rows
        claimed = self.claim(rows)
        entries = claimed.new + claimed.repair
        sent = Sent()
        closed: list[Closed] = []
        try:
            sent = self.send(entries)
        finally:
            closed = self.close([entry.entry_id for entry in entries])
        return self.report(len(rows), claimed, sent, closed)

    def report(self, read: int, claimed: Claimed, sent: Sent, closed: Sequence[Closed]) -> Report:
        """Put together what the steps brought."""
        answered = [_remembered(item, claimed) for item in closed if item.entry_id not in sent.outcomes]
        outcomes = list(sent.outcomes.values()) + [outcome for outcome in answered if outcome is not None]
        return Report(
            read=read,
            taken_over=claimed.taken_over,
            rows=refused_rows(claimed.refused) + outcome_rows(outcomes, closed),
            scheduled=sum(item.state is EntryState.SCHEDULED for item in closed),
            left=len(sent.left),
            calls=sent.calls,
            api_seconds=sent.api_seconds,
            seconds=self._clock() - self._began,
            throttled=self._governor.throttled,
        )

    def _sender(self) -> Sender:
        limits = Limits(self._settings.concurrency, self._began + self._settings.deadline_seconds)
        return Sender(
            self.control,
            self._runs,
            self._governor,
            policy_of(self._settings),
            limits,
            stop=self._stop,
            clock=self._clock,
            on_outcome=self._on_outcome,
        )


def _unanswered(entries: Sequence[Entry]) -> list[Entry]:
    return [entry for entry in entries if entry.state in (EntryState.CLAIMED, EntryState.SENDING)]


def _target(work: Work) -> RepairTarget:
    step = work.step
    return RepairTarget(
        entry_id=work.entry.entry_id,
        run_id=work.entry.run_id,
        previous_run_id=work.entry.previous_run_id,
        latest_repair_id=step.latest_repair_id if isinstance(step, RepairRun) else None,
        fresh_run=isinstance(step, StartRun),
        reason=step.reason if isinstance(step, StartRun) else "",
    )


def _targeted(entry: Entry, target: RepairTarget) -> Work:
    if entry.state is EntryState.SENDING or entry.previous_run_id != target.previous_run_id:
        return Work(entry, first_step(entry))
    return Work(entry, StartRun(target.reason) if target.fresh_run else RepairRun(target.latest_repair_id))


def _remembered(item: Closed, claimed: Claimed) -> RowOutcome | None:
    """The outcome of an entry whose answer an earlier dispatch recorded and this one only closed."""
    entry = next((e for e in claimed.new + claimed.repair if e.entry_id == item.entry_id), None)
    if entry is None or item.outcome is None or item.outcome not in _ANSWERED:
        return None
    reason = f"{item.reason} (answer recorded by an earlier dispatch)"
    return RowOutcome(replace(entry), item.outcome, reason, item.accepted_run_id, item.accepted_repair_id)
