"""One pass over the waiting jobs: read, claim, send, close. The same under Dagster, in ``pm`` and on a cluster.

Put here: the order of the steps and what passes between them. Keep out: how a step is decided (``decisions``) or sent
(``sending``). Each step may be run again, in this process or another: it continues from the ledger.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial

from pm_dagster.config.settings import Settings
from pm_dagster.dispatch.circuit_breaker import CircuitBreaker, RefusalBreaker
from pm_dagster.dispatch.in_doubt import TO_SEND, has_intent
from pm_dagster.dispatch.model import (
    Call,
    Decision,
    Entry,
    EntryState,
    Outcome,
    RepairRun,
    RowOutcome,
    RunSnapshot,
    StartRun,
    Work,
)
from pm_dagster.dispatch.ports import Closed, ControlPlane, DatabricksRuns
from pm_dagster.dispatch.rate_limiter import RateLimiter
from pm_dagster.dispatch.report import Report, outcome_rows, refused_rows
from pm_dagster.dispatch.rules import Policy, first_step
from pm_dagster.dispatch.waiting_job import Branch, RawRow, RefusedRow, WaitingJob, row_key, sort_rows, within
from pm_dagster.dispatch.worker import Limits, Sent, Worker
from pm_dagster.errors import WorkspaceUnavailable

#: So often a row that is corrected again and again is taken anew within one dispatch.
_MOST_GENERATIONS = 3
_ANSWERED = (Outcome.ACCEPTED, Outcome.ADOPTED, Outcome.QUARANTINED)
#: So often the next rows are read in place of those that could not be had: each time all that is left is a race with
#: other dispatches, or a row that was changed since it was read.
_MOST_READS = 8


@dataclass(frozen=True)
class Claimed:
    """What a dispatch took: entries by branch, and the rows it refused. ``taken_over`` counts a dead dispatcher's.

    ``rows`` are all that were looked at, ``further`` those of them that were read in place of others.
    """

    new: list[Entry]
    repair: list[Entry]
    refused: list[RefusedRow]
    taken_over: int
    rows: Sequence[RawRow] = ()
    further: Sequence[RawRow] = ()


@dataclass
class _Taken:
    """What became of rows that a dispatch wanted: taken, refused, or had by somebody else."""

    entries: list[Entry]
    refused: list[RefusedRow]
    missing: list[WaitingJob]

    @property
    def count(self) -> int:
        """The entries that can be sent; one that was put off takes no place of another."""
        return sum(entry.state is not EntryState.DEFERRED for entry in self.entries)

    def add(self, more: _Taken) -> None:
        """Count the others in."""
        self.entries += more.entries
        self.refused += more.refused
        self.missing += more.missing


@dataclass(frozen=True)
class RepairTarget:
    """An entry whose run was looked up and that needs a call: a repair naming ``latest_repair_id``, or a fresh run.

    ``run_job_id`` and ``page_url`` are what the look-up gave of that run.
    """

    entry_id: int
    run_id: int
    previous_run_id: int | None
    latest_repair_id: int | None
    fresh_run: bool
    reason: str
    run_job_id: int | None = None
    page_url: str | None = None


def policy_of(settings: Settings) -> Policy:
    """The rules' numbers, from the settings."""
    return Policy(
        fresh_run_allowed=settings.missing_run == "fresh-run",
        call_tries=settings.call_tries,
        call_backoff_seconds=settings.call_backoff_seconds,
        max_attempts=settings.max_attempts,
        settle_seconds=settings.settle_seconds,
        control_table=settings.control_table,
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
        self._limiter = RateLimiter(rates, clock)
        backoff = settings.call_backoff_seconds
        self._breaker = CircuitBreaker(settings.concurrency, settings.call_tries, backoff, clock)
        self._refusals = RefusalBreaker(backoff, clock)
        self._followed: list[int] = []

    def read(self, limit: int | None = None) -> list[RawRow]:
        """The rows that wait, oldest first; ``limit`` defaults to the configured one. Takes nothing."""
        return self.control.waiting(limit or self._settings.dispatch_limit)

    def claim(self, rows: Sequence[RawRow], limit: int | None = None) -> Claimed:
        """Take the rows, refuse those that break their own rules, and take over what a dead dispatcher left.

        At most ``limit`` rows are taken, which defaults to as many as ``rows`` has. Where fewer could be had, because
        others hold or took them or they are refused, the next ones are read, so that no row keeps back those behind it.
        """
        inherited = self.control.take_over(self._settings.dispatch_limit)
        wanted = limit or len(_keys(rows))
        looked_at = within(rows, wanted)
        taken = self._take(looked_at)
        further: list[RawRow] = []
        # A read that gave fewer than it might has left nothing behind.
        cut_off = len(_keys(looked_at)) >= wanted
        for _ in range(_MOST_READS):
            short = wanted - taken.count
            if short <= 0 or not cut_off or self._over():
                break
            more = within(self.control.waiting(short, _keys([*looked_at, *further])), short)
            taken.add(self._take(more))
            further += more
            cut_off = len(more) >= short
        short = wanted - taken.count
        if short > 0 and taken.missing:
            # Who only looks holds a lock for a moment, too.
            taken.entries += self.control.claim(taken.missing[:short])
        entries = inherited + taken.entries
        by_branch = {branch: [entry for entry in entries if entry.branch is branch] for branch in Branch}
        seen = [*looked_at, *further]
        return Claimed(by_branch[Branch.NEW], by_branch[Branch.REPAIR], taken.refused, len(inherited), seen, further)

    def _take(self, rows: Sequence[RawRow]) -> _Taken:
        """Claim the rows and refuse those that break their own rules, as they are now."""
        jobs, refused = sort_rows(rows)
        if refused:
            self.control.refuse(refused)
        entries = self.control.claim(jobs)
        had = {entry.run_id for entry in entries}
        missing = [job for job in jobs if job.run_id not in had]
        if missing:
            # A row that stands twice may have been read once, the other time being beyond the limit.
            by_key = {row_key(row): row for row in rows}
            doubtful = [RefusedRow(job.run_id, job.branch, "", by_key[job.run_id]) for job in missing]
            refused += self.control.refuse(doubtful)
        return _Taken(entries, refused, missing)

    def _over(self) -> bool:
        return self._stop.is_set() or self._clock() >= self._began + self._settings.deadline_seconds

    def resume(self, entry_ids: Collection[int]) -> list[Entry]:
        """Entries by id, as they stand, if they are this dispatch's or may become so."""
        return self.control.resume(entry_ids)

    def send(self, entries: Sequence[Entry]) -> Sent:
        """Take the entries to their outcome; entries whose answer is already recorded are left as they are.

        A row that was corrected after a call for it is taken as it is now, once it is known what that call did.
        """
        return self._and_followers(self._send(entries), self._send)

    def _send(self, entries: Sequence[Entry], *, prepare_only: bool = False) -> Sent:
        works = [Work(entry, first_step(entry)) for entry in _unanswered(entries)]
        return self._worker().send(works, prepare_only=prepare_only)

    def prepare(self, entries: Sequence[Entry]) -> tuple[list[RepairTarget], Sent]:
        """Look up the runs of repair entries; decide those that need no call, and return the others as targets."""
        prepare = partial(self._send, prepare_only=True)
        sent = self._and_followers(prepare(entries), prepare)
        # The targets say all that the next step needs; the works would be stored with it.
        prepared, sent.prepared = sent.prepared, []
        return [_target(work) for work in prepared], sent

    def foresee(self, entries: Sequence[Entry]) -> tuple[dict[int, Decision | RowOutcome], WorkspaceUnavailable | None]:
        """Decide the entries up to the point of starting something, which is not done.

        Gives the next call of each, or its outcome, by entry id, and why the workspace was asked no further.
        """
        worker, failure = self._worker(), None
        try:
            worker.send([Work(entry, first_step(entry)) for entry in entries], prepare_only=True)
        except WorkspaceUnavailable as error:
            failure = error
        steps = {work.entry.entry_id: work.step for work in worker.sent.prepared}
        return {**steps, **worker.sent.outcomes}, failure

    def send_targets(self, targets: Sequence[RepairTarget]) -> Sent:
        """Make the call of each target that is still ours and unsent; one that was already sent is resolved first."""
        by_id = {target.entry_id: target for target in targets}
        works = [_targeted(entry, by_id[entry.entry_id]) for entry in _unanswered(self.resume(by_id))]
        return self._and_followers(self._worker().send(works), self._send)

    def _and_followers(self, sent: Sent, send: Callable[[Sequence[Entry]], Sent]) -> Sent:
        """What was sent, and then the rows that turned out to be corrected, as they are now."""
        part = sent
        for _ in range(_MOST_GENERATIONS):
            entries = self._taken_anew([outcome.entry for outcome in part.outcomes.values() if outcome.superseded])
            if not entries:
                break
            sent.followed += entries
            part = send(entries)
            sent.add(part)
        return sent

    def _taken_anew(self, former: Sequence[Entry]) -> list[Entry]:
        jobs = [WaitingJob(entry.run_id, entry.job_id, entry.previous_run_id, entry.parameters) for entry in former]
        entries = self.control.claim(jobs) if jobs else []
        self._followed += [entry.entry_id for entry in entries]
        return entries

    def finish(self, entries: Sequence[Entry], sent: Sent) -> list[Closed]:
        """Close what was sent, and do what rows ask for that were corrected before they were closed; adds to ``sent``.

        Gives all that was closed.
        """
        known = {entry.entry_id: entry for entry in (*entries, *sent.followed)}
        # Those that were superseded while they were sent have their followers already.
        done = {number for number, outcome in sent.outcomes.items() if outcome.superseded}
        closed = self.close(list(known))
        for _ in range(_MOST_GENERATIONS):
            former = {item.entry_id for item in closed if item.superseded} - done
            done |= former
            anew = self._taken_anew([known[number] for number in sorted(former)])
            if not anew:
                break
            sent.followed += anew
            sent.add(self.send(anew))
            known |= {entry.entry_id: entry for entry in sent.followed}
            closed = self.close(list(known))
        return closed

    def close(self, entry_ids: Collection[int]) -> list[Closed]:
        """Write the control table for the entries whose outcome is known."""
        return self.control.close(entry_ids, lambda: not self._over())

    def run(self, limit: int | None = None, rows: Sequence[RawRow] | None = None) -> Report:
        """The whole pass, both branches at once, over ``rows`` where they were read elsewhere, at most ``limit``.

        Raises what its steps raise; rows closed until then stay closed.
        """
        limit = limit or self._settings.dispatch_limit
        claimed = self.claim(self.read(limit) if rows is None else rows, limit)
        entries = claimed.new + claimed.repair
        try:
            sent = self.send(entries)
        except BaseException:
            self.close([entry.entry_id for entry in entries] + self._followed)
            raise
        closed = self.finish(entries, sent)
        return self.report(len(claimed.rows), claimed, sent, closed)

    def report(self, read: int, claimed: Claimed, sent: Sent, closed: Sequence[Closed]) -> Report:
        """Put together what the steps brought."""
        entries = {entry.entry_id: entry for both in (claimed.new, claimed.repair) for entry in both}
        earlier = [item for item in closed if item.entry_id not in sent.outcomes]
        answered = [_remembered(item, entries.get(item.entry_id)) for item in earlier]
        outcomes = list(sent.outcomes.values()) + [outcome for outcome in answered if outcome is not None]
        put_off = [entry for entry in claimed.new + claimed.repair if entry.state is EntryState.DEFERRED]
        outcomes += [RowOutcome(entry, Outcome.DEFERRED, entry.reason) for entry in put_off]
        return Report(
            read=read,
            further=list(claimed.further),
            taken_over=claimed.taken_over,
            rows=refused_rows(claimed.refused) + outcome_rows(outcomes, closed),
            scheduled=sum(item.state is EntryState.SCHEDULED for item in closed),
            left=len(sent.left),
            calls=sent.calls,
            api_seconds=sent.api_seconds,
            seconds=self._clock() - self._began,
            throttled=self._limiter.throttled,
        )

    def _worker(self) -> Worker:
        limits = Limits(self._settings.concurrency, self._began + self._settings.deadline_seconds)
        return Worker(
            self.control,
            self._runs,
            policy_of(self._settings),
            limits,
            self._limiter,
            self._breaker,
            self._refusals,
            stop=self._stop,
            clock=self._clock,
            on_outcome=self._on_outcome,
        )


def _keys(rows: Sequence[RawRow]) -> list[int]:
    """The rows' ids in the ledger, as far as they have one."""
    return [key for key in map(row_key, rows) if key is not None]


def _unanswered(entries: Sequence[Entry]) -> list[Entry]:
    return [entry for entry in entries if entry.state in TO_SEND]


def _target(work: Work) -> RepairTarget:
    step = work.step
    return RepairTarget(
        entry_id=work.entry.entry_id,
        run_id=work.entry.run_id,
        previous_run_id=work.entry.previous_run_id,
        latest_repair_id=step.latest_repair_id if isinstance(step, RepairRun) else None,
        fresh_run=isinstance(step, StartRun),
        reason=step.reason if isinstance(step, StartRun) else "",
        run_job_id=work.seen.job_id if work.seen else None,
        page_url=work.seen.page_url if work.seen else None,
    )


def _targeted(entry: Entry, target: RepairTarget) -> Work:
    if has_intent(entry) or entry.previous_run_id != target.previous_run_id:
        return Work(entry, first_step(entry))
    step = StartRun(target.reason) if target.fresh_run else RepairRun(target.latest_repair_id)
    return Work(entry, step, seen=_seen(target))


def _seen(target: RepairTarget) -> RunSnapshot | None:
    """The looked-up run as far as it is told of: its state may be another by now."""
    if target.previous_run_id is None or target.run_job_id is None:
        return None
    return RunSnapshot(target.previous_run_id, target.run_job_id, None, None, page_url=target.page_url)


def _remembered(item: Closed, entry: Entry | None) -> RowOutcome | None:
    """The outcome of an entry whose answer an earlier dispatch recorded and this one only closed."""
    if entry is None or item.outcome is None or item.outcome not in _ANSWERED:
        return None
    reason = f"{item.reason} (answer recorded by an earlier dispatch)"
    return RowOutcome(replace(entry), item.outcome, reason, item.accepted_run_id, item.accepted_repair_id)
