"""One dispatch: its steps over the waiting rows, and the driver that runs them in order.

    read -> claim -> send -> close -> report
                  (look up repairs -> repair)

``pm dispatch`` and the cluster's program call ``Dispatch.run``, the driver. Dagster gives each step an op of its own,
with the look-up of repairs apart, and ``pm plan`` runs the steps over ports that write nothing (``planning``). Each
step may be run again, in this process or in another: it continues from the ledger. ``rules`` decide a row, ``worker``
makes its calls.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from pm_dagster.config.masking import scrubbed
from pm_dagster.config.settings import Settings
from pm_dagster.dispatch.circuit_breaker import CircuitBreaker, RefusalBreaker
from pm_dagster.dispatch.in_doubt import TO_SEND, has_intent
from pm_dagster.dispatch.model import (
    Answer,
    Call,
    Decision,
    Entry,
    EntryState,
    RepairRun,
    RowOutcome,
    RunSnapshot,
    StartRun,
    Step,
    Work,
)
from pm_dagster.dispatch.ports import Closed, ControlPlane, DatabricksRuns
from pm_dagster.dispatch.rate_limiter import RateLimiter
from pm_dagster.dispatch.report import Report, report_rows, unsent_rows
from pm_dagster.dispatch.rules import Policy, first_step
from pm_dagster.dispatch.shared_budget import SharedBudget
from pm_dagster.dispatch.waiting_job import Branch, RawRow, RefusedRow, WaitingJob, row_key, sort_rows, within
from pm_dagster.dispatch.worker import Feed, Limits, Sent, Worker
from pm_dagster.errors import ProcessManagerError
from pm_dagster.logs import fields

_log = logging.getLogger(__name__)

#: A row that is corrected again and again is claimed anew at most so often within one dispatch.
MOST_GENERATIONS = 3
#: At most so many further reads replace rows that could not be claimed. What is missing after them is lost to other
#: dispatches, or was changed since it was read.
_MOST_READS = 8


@dataclass
class Claimed:
    """What a claim brought.

    Attributes:
        entries: The entries to work on: rows that were taken, and entries rescued from a dead dispatcher.
        refused: Rows that break their own rules; they are marked FAILED.
        rows: All rows that were looked at, in their order.
        further: Those of ``rows`` that were read in place of rows that could not be claimed.
        missing: Jobs that could not be claimed: somebody else holds, took or changed them.
    """

    entries: list[Entry] = field(default_factory=list)
    refused: list[RefusedRow] = field(default_factory=list)
    rows: list[RawRow] = field(default_factory=list)
    further: list[RawRow] = field(default_factory=list)
    missing: list[WaitingJob] = field(default_factory=list)

    @property
    def new(self) -> list[Entry]:
        """The entries that need a new run."""
        return [entry for entry in self.entries if entry.branch is Branch.NEW]

    @property
    def repair(self) -> list[Entry]:
        """The entries whose previous run is to be repaired."""
        return [entry for entry in self.entries if entry.branch is Branch.REPAIR]

    @property
    def sendable(self) -> int:
        """How many entries can be sent; one that was put off takes no place of another."""
        return sum(entry.state is not EntryState.DEFERRED for entry in self.entries)

    @property
    def rescued(self) -> int:
        """How many entries a dead dispatcher had left."""
        return sum(entry.rescued for entry in self.entries)

    def add(self, more: Claimed) -> None:
        """Take in what a later claim brought."""
        self.entries += more.entries
        self.refused += more.refused
        self.rows += more.rows
        self.missing += more.missing


@dataclass(frozen=True)
class RepairTarget:
    """An entry whose run was looked up and that needs a call: what one op hands to the next.

    Attributes:
        entry_id: The entry in the ledger.
        run_id: The control plane's id of the row.
        previous_run_id: The Databricks run that was looked up.
        latest_repair_id: What a repair has to name; None when the run was never repaired.
        fresh_run: Whether a new run is started instead of a repair, because there is nothing left to repair.
        reason: Why it is a fresh run.
        run_job_id: The Databricks job of the run, as the workspace said.
        page_url: The run's page, as the workspace said.
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
    """One dispatch and its steps.

    Args:
        control: The control table and the ledger, as one dispatcher sees them.
        runs: The Jobs API of the workspace.
        settings: Limits, rates, deadline and names.
        stop: When set, the dispatch ends early: calls in flight are awaited and recorded, the rest is left.
        clock: Seconds that only grow; the deadline counts from the moment this object is made.
        on_outcome: Is told of each row when its outcome is decided.
    """

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
        self._limiter = RateLimiter(rates, clock, shares=True)
        self._budget = SharedBudget(control, self._limiter, lambda: runs.workspace)
        backoff = settings.call_backoff_seconds
        self._breaker = CircuitBreaker(settings.concurrency, settings.call_tries, backoff, clock)
        self._refusals = RefusalBreaker(backoff, clock)
        #: What the steps of this process brought, also those that failed: an op that is retried decides nothing anew.
        self.progress = Sent()
        #: What the claims of this process refused.
        self._refused: list[RefusedRow] = []
        #: Entries that this process claimed and did not touch since, by id.
        self._untouched: dict[int, Entry] = {}
        #: What the newest claim of this process brought.
        self._newest: list[Entry] = []
        #: All entries that this process works on, and those of them that it closed, by id.
        self._working_on: set[int] = set()
        self._closed: set[int] = set()

    def run(self, limit: int | None = None, rows: Sequence[RawRow] | None = None) -> Report:
        """All steps in order, both branches at once.

        Args:
            limit: The most rows to take; the configured limit by default.
            rows: The waiting rows, where they were read elsewhere.

        Raises:
            ProcessManagerError: What a step raises. Rows that were closed until then stay closed.
        """
        limit = limit or self._settings.dispatch_limit
        _log.info("dispatch started", extra=fields(limit=limit, deadline=self._settings.deadline_seconds))
        claimed = self.claim(self.read(limit) if rows is None else rows, limit)
        entries = claimed.new + claimed.repair
        sent = self.send(entries)
        closed = self.close(entries, sent)
        return self.report(claimed, sent, closed)

    def read(self, limit: int | None = None) -> list[RawRow]:
        """Step: the rows that wait, oldest first, at most ``limit`` (the configured one by default). Takes nothing."""
        return self.control.waiting(limit or self._settings.dispatch_limit)

    def claim(self, rows: Sequence[RawRow], limit: int | None = None) -> Claimed:
        """Step: take the rows, refuse those that break their own rules, rescue what a dead dispatcher left.

        At most ``limit`` rows are taken, by default as many as ``rows`` has. Where fewer can be had, because others
        hold or took them or they are refused, the next ones are read: no row keeps back those behind it.
        """
        rescued = self.control.rescue(self._settings.dispatch_limit)
        wanted = limit or len(_keys(rows))
        looked_at = within(rows, wanted)
        claimed = self._take(looked_at)
        # A read that gave fewer than it might has left nothing behind.
        more_behind = len(_keys(looked_at)) >= wanted
        for _ in range(_MOST_READS):
            short = wanted - claimed.sendable
            if short <= 0 or not more_behind or self._over():
                break
            further = within(self.control.waiting(short, _keys(claimed.rows)), short)
            claimed.add(self._take(further))
            claimed.further += further
            more_behind = len(further) >= short
        short = wanted - claimed.sendable
        if short > 0 and claimed.missing:
            # Whoever only looks at a row holds its lock for a moment, too.
            claimed.entries += self.control.claim(claimed.missing[:short])
        claimed.entries = rescued + claimed.entries
        self._untouched |= {entry.entry_id: entry for entry in claimed.entries}
        self._newest = list(claimed.entries)
        self._working_on |= {entry.entry_id for entry in claimed.entries}
        self._refused += claimed.refused
        _log_claim(claimed)
        return claimed

    def _take(self, rows: list[RawRow]) -> Claimed:
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
        return Claimed(entries, refused, list(rows), missing=missing)

    @property
    def begins_with(self) -> list[Entry]:
        """The entries of this process' newest claim that it has not touched since."""
        return [entry for entry in self._newest if entry.entry_id in self._untouched]

    def take_up(self, entry_ids: Collection[int]) -> list[Entry]:
        """The entries by id: as claimed if this process has not touched them since, else as the ledger has them.

        Entries of others are left out unless they can be rescued now.
        """
        untouched = [self._untouched[entry_id] for entry_id in entry_ids if entry_id in self._untouched]
        others = [entry_id for entry_id in entry_ids if entry_id not in self._untouched]
        self._working_on |= set(entry_ids)
        return untouched + (self.control.resume(others) if others else [])

    def send(self, entries: Sequence[Entry]) -> Sent:
        """Step: start or repair what the entries ask for; an entry whose answer is recorded already is left as it is.

        A row that was corrected after a call for it is taken as it is now, once it is known what that call did. When
        the step fails, the rows whose outcome is known are closed.
        """
        return self._with_followers(entries, self._send)

    def look_up_repairs(self, entries: Sequence[Entry]) -> tuple[list[RepairTarget], Sent]:
        """Step: look up the runs of repair entries; gives those that need a call, and what was decided without one.

        Fails as ``send`` does.
        """
        sent = self._with_followers(entries, self._look_up)
        # The targets say all that the next step needs; the works would be stored with it.
        prepared, sent.prepared = sent.prepared, []
        return [target_of(work, work.step) for work in prepared], sent

    def repair(self, targets: Sequence[RepairTarget]) -> Sent:
        """Step: make the call of each target that is still ours and unsent; what was sent already is resolved first.

        Fails as ``send`` does.
        """
        by_id = {target.entry_id: target for target in targets}

        def send(entries: Sequence[Entry]) -> Sent:
            return self._work([targeted(entry, by_id.get(entry.entry_id)) for entry in unanswered(entries)])

        return self._with_followers(self.take_up(by_id), send)

    def _send(self, entries: Sequence[Entry]) -> Sent:
        return self._work([Work(entry, first_step(entry)) for entry in unanswered(entries)])

    def _look_up(self, entries: Sequence[Entry]) -> Sent:
        works = [Work(entry, first_step(entry)) for entry in unanswered(entries)]
        return self._work(works, prepare_only=True)

    def _work(self, works: list[Work], *, prepare_only: bool = False, feed: Feed | None = None) -> Sent:
        self.touch(works)
        worker = self.worker(feed)
        try:
            return worker.send(works, prepare_only=prepare_only)
        finally:
            self.progress.add(worker.sent)

    def touch(self, works: Sequence[Work]) -> None:
        """From now on the ledger says how the rows stand, no longer their claim."""
        for work in works:
            self._untouched.pop(work.entry.entry_id, None)

    def _with_followers(self, entries: Sequence[Entry], send: Callable[[Sequence[Entry]], Sent]) -> Sent:
        """Send the entries, and then the rows that turned out to be corrected, as they are now."""
        try:
            sent = part = send(entries)
            for _ in range(MOST_GENERATIONS):
                former = [outcome.entry for outcome in part.outcomes.values() if outcome.superseded]
                followers = self.claim_anew(former)
                if not followers:
                    break
                sent.followed += followers
                part = send(followers)
                sent.add(part)
        except BaseException:
            self.close_early()
            raise
        return sent

    def claim_anew(self, former: Sequence[Entry]) -> list[Entry]:
        """Take rows that turned out to be corrected, as they are now."""
        jobs = [WaitingJob(entry.run_id, entry.job_id, entry.previous_run_id, entry.parameters) for entry in former]
        entries = self.control.claim(jobs) if jobs else []
        self._working_on |= {entry.entry_id for entry in entries}
        for entry in entries:
            _log.info("row corrected, claimed anew", extra=fields(run_id=entry.run_id, entry=entry.entry_id))
        return entries

    def close_early(self) -> None:
        """Close what is known before other steps go on: one of them may fail for good, and ``close`` is never reached.

        What cannot be closed now is closed by ``close``, or by the next dispatch.
        """
        still_open = self._working_on - self._closed
        try:
            if still_open:
                self._close(still_open)
        except ProcessManagerError as error:
            _log.warning("closing put off", extra=fields(entries=len(still_open), error=scrubbed(str(error))))

    def close(self, entries: Sequence[Entry], sent: Sent) -> list[Closed]:
        """Step: write the control table for entries whose outcome is known.

        A row that was corrected before it was closed is taken as it is now, sent, and added to ``sent``. Gives all that
        is closed, whoever closed it.
        """
        known = {entry.entry_id: entry for entry in (*entries, *sent.followed)}
        self.take_up([entry_id for entry_id in known if entry_id not in self._working_on])
        # Those that were superseded while they were sent have their followers already.
        followed = {entry_id for entry_id, outcome in sent.outcomes.items() if outcome.superseded}
        closed = self._close(known)
        for _ in range(MOST_GENERATIONS):
            former = {item.entry_id for item in closed if item.superseded} - followed
            followed |= former
            followers = self.claim_anew([known[entry_id] for entry_id in sorted(former)])
            if not followers:
                break
            sent.followed += followers
            sent.add(self.send(followers))
            known |= {entry.entry_id: entry for entry in sent.followed}
            closed = self._close(known)
        return closed

    def _close(self, entry_ids: Collection[int]) -> list[Closed]:
        closed = self.control.close(sorted(entry_ids), lambda: not self._over())
        for item in closed:
            if item.entry_id not in self._closed:
                _log_closed(item)
        self._closed |= {item.entry_id for item in closed}
        return closed

    def report(self, claimed: Claimed, sent: Sent, closed: Sequence[Closed]) -> Report:
        """Step: what the dispatch did. Outcomes and refusals of steps of this process that failed count as well."""
        outcomes = self.progress.outcomes | sent.outcomes
        told = {row.run_id for row in claimed.refused}
        refused = claimed.refused + [row for row in self._refused if row.run_id not in told]
        rows = report_rows(claimed.rows, refused, claimed.new + claimed.repair, outcomes, closed)
        report = Report(
            read=len(claimed.rows),
            rescued=claimed.rescued,
            rows=rows,
            unsent=unsent_rows(claimed.rows, rows),
            scheduled=sum(item.state is EntryState.SCHEDULED for item in closed),
            left=len(sent.left),
            calls=sent.calls,
            api_seconds=sent.api_seconds,
            seconds=self._clock() - self._began,
            throttled=self._limiter.throttled,
        )
        _log.info("dispatch finished", extra=fields(**report.as_json()))
        return report

    def stop(self) -> None:
        """End the dispatch early: calls in flight are awaited and recorded, the rest is left. From any thread."""
        self._stop.set()

    def _over(self) -> bool:
        return self._stop.is_set() or self._clock() >= self._began + self._settings.deadline_seconds

    def worker(
        self,
        feed: Feed | None = None,
        *,
        on_answer: Callable[[Work, Answer, Decision | None], None] = lambda _work, _answer, _decision: None,
        on_outcome: Callable[[RowOutcome], None] = lambda _outcome: None,
    ) -> Worker:
        """A worker for one stretch of sending, with this dispatch's rate limiter, circuit breakers and deadline."""

        def tell(outcome: RowOutcome) -> None:
            on_outcome(outcome)
            self._on_outcome(outcome)

        limits = Limits(self._settings.concurrency, self._began + self._settings.deadline_seconds)
        return Worker(
            self.control,
            self._runs,
            policy_of(self._settings),
            limits,
            self._limiter,
            self._budget,
            self._breaker,
            self._refusals,
            stop=self._stop,
            clock=self._clock,
            on_outcome=tell,
            on_answer=on_answer,
            feed=feed,
        )


def _keys(rows: Sequence[RawRow]) -> list[int]:
    """The rows' ids in the ledger, as far as they have one."""
    return [key for key in map(row_key, rows) if key is not None]


def unanswered(entries: Sequence[Entry]) -> list[Entry]:
    """Those of the entries that need a call."""
    return [entry for entry in entries if entry.state in TO_SEND]


def _log_claim(claimed: Claimed) -> None:
    for entry in claimed.entries:
        of_the_row = fields(
            run_id=entry.run_id, entry=entry.entry_id, branch=entry.branch.value, state=entry.state.value
        )
        if entry.rescued:
            _log.info("rescued", extra=of_the_row)
        else:
            _log.debug("claimed", extra=of_the_row)
    for row in claimed.refused:
        _log.info("row refused", extra=fields(run_id=row.run_id, reason=scrubbed(row.reason)))
    counts = fields(
        new=len(claimed.new),
        repair=len(claimed.repair),
        rescued=claimed.rescued,
        refused=len(claimed.refused),
        further_rows=len(claimed.further),
    )
    _log.info("rows claimed", extra=counts)


def _log_closed(item: Closed) -> None:
    more = fields(
        run_id=item.run_id, entry=item.entry_id, control_status=item.control_status, superseded=item.superseded
    )
    _log.debug("row closed", extra=more)


def target_of(work: Work, step: Step) -> RepairTarget:
    """The target that a row is, once the call to make next is known."""
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


def targeted(entry: Entry, target: RepairTarget | None) -> Work:
    """The call that the look-up decided; a fresh look-up where it is not known that it still holds."""
    if target is None or has_intent(entry) or entry.previous_run_id != target.previous_run_id:
        return Work(entry, first_step(entry))
    step = StartRun(target.reason) if target.fresh_run else RepairRun(target.latest_repair_id)
    return Work(entry, step, seen=_seen(target))


def _seen(target: RepairTarget) -> RunSnapshot | None:
    """The run as far as the look-up is told of: its state may be another by now."""
    if target.previous_run_id is None or target.run_job_id is None:
        return None
    return RunSnapshot(target.previous_run_id, target.run_job_id, None, None, page_url=target.page_url)
