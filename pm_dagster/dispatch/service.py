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
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from pm_dagster.config.masking import scrubbed
from pm_dagster.config.settings import MOST_ROWS, Settings
from pm_dagster.dispatch.batches import LOCK_SECONDS, Batches, BatchFeed, Claimed
from pm_dagster.dispatch.circuit_breaker import CircuitBreaker, RefusalBreaker
from pm_dagster.dispatch.in_doubt import TO_SEND, has_intent
from pm_dagster.dispatch.ledger_writer import outlast
from pm_dagster.dispatch.model import (
    Answer,
    Call,
    Decision,
    Entry,
    EntryState,
    Outcome,
    RepairRun,
    RowOutcome,
    RunSnapshot,
    StartRun,
    Step,
    Work,
)
from pm_dagster.dispatch.ports import Closed, ControlPlane, DatabricksRuns
from pm_dagster.dispatch.rate_limiter import RateLimiter
from pm_dagster.dispatch.report import Report, Tally
from pm_dagster.dispatch.rules import Policy, first_step
from pm_dagster.dispatch.shared_budget import SharedBudget
from pm_dagster.dispatch.waiting_job import Branch, RawRow, RefusedRow, WaitingJob, row_key
from pm_dagster.dispatch.worker import Feed, Limits, Sent, Worker
from pm_dagster.errors import ProcessManagerError, Unavailable
from pm_dagster.logs import fields

T = TypeVar("T")
_log = logging.getLogger(__name__)

#: A row that is corrected again and again is claimed anew at most so often within one dispatch.
MOST_GENERATIONS = 3
#: How often somebody who follows looks for rows, and how long it looks away after a pass that failed.
_LOOK_SECONDS, _LONGEST_LOOK_SECONDS = 1.0, 5.0


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
        self.clock = clock
        self.concurrency = settings.concurrency
        self._on_outcome = on_outcome
        self._began = clock()
        #: Whether ``run`` did a pass before, and how many calls were throttled until then.
        self._ran = False
        self._throttled_before = 0
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
        self.working_on: set[int] = set()
        self._closed: set[int] = set()

    def run(
        self, limit: int | None = None, rows: Sequence[RawRow] | None = None, *, linger: float | None = None
    ) -> Report:
        """All steps at once, both branches: rows are claimed while others are sent, and closed as answers come.

        Args:
            limit: The most rows to take; the configured limit by default.
            rows: The oldest waiting rows, where they were read elsewhere.
            linger: For so many seconds after the last row it takes what comes; the configured time by default.

        Raises:
            ProcessManagerError: What a step raises. Rows that were closed until then stay closed.
        """
        self._begin_pass()
        limit = limit or self._settings.dispatch_limit
        _log.info("dispatch started", extra=fields(limit=limit, deadline=self._settings.deadline_seconds))
        return self._pass(_Pass(self, limit, rows, self._settings.linger_seconds if linger is None else linger))

    def linger(self, taken: int) -> Report | None:
        """Step: look for further rows, until none came for the configured time, and dispatch what comes.

        Both branches as in ``run``, within the deadline of this dispatch and what is left of its limit.

        Args:
            taken: How many rows the other steps took.

        Returns:
            What was done meanwhile; None where it does not linger.

        Raises:
            ProcessManagerError: As ``run``.
        """
        seconds, room = self._settings.linger_seconds, self._settings.dispatch_limit - taken
        if not seconds or room <= 0 or self._over():
            return None
        self._throttled_before = self._limiter.throttled
        return self._pass(_Pass(self, room, (), seconds))

    def _pass(self, whole: _Pass) -> Report:
        rescued = self.control.rescue(self._settings.dispatch_limit)
        works = whole.first([replace(entry, rescued=entry.entry_id not in self.working_on) for entry in rescued])
        worker = self.worker(whole, on_outcome=whole.decided, on_closed=whole.closed)
        whole.sent = worker.sent
        try:
            sent = worker.send(works)
        except BaseException:
            self.close_early()
            raise
        left = whole.end()
        closed = self.close(list(whole.open.values()), sent)
        for outcome in sent.outcomes.values():
            # Of rows that were corrected before they were closed.
            whole.decided(outcome)
        whole.closed(closed)
        if whole.answered and not self._over() and not self._stop.wait(LOCK_SECONDS):
            # Whoever only looks at a row holds its lock for a moment, and closing passes over it.
            whole.closed(self._close(whole.answered))
        return self._reported(whole.tally, sent, left + len(sent.left))

    def _begin_pass(self) -> None:
        """The first pass counts from the making of this object, each later one from its own beginning."""
        if self._ran:
            self._began = self.clock()
            self._throttled_before = self._limiter.throttled
            # What a pass that failed leaves is rescued like that of another dispatcher.
            self.working_on.clear()
            self._closed.clear()
        self._ran = True

    def follow(self, limit: int | None = None) -> Iterator[Report]:
        """Pass after pass, each as soon as there is work, until a stop is requested.

        While nothing waits it looks once a second and shows that it lives. A database or a workspace that is away is
        waited for, once the database has answered the first time.

        Args:
            limit: The most rows of a pass.

        Yields:
            The report of each pass that had rows.

        Raises:
            ProcessManagerError: What nobody can wait for, such as wrong credentials.
        """
        pause, reached = 0.0, False
        while not self._stop.wait(pause):
            try:
                pause = _LOOK_SECONDS
                work = self.control.has_work(ours=True)
                reached = True
                if not work:
                    self.control.heartbeat()
                    continue
                report = self.run(limit, linger=_LOOK_SECONDS)
            except Unavailable as error:
                if not reached:
                    raise
                pause = _LONGEST_LOOK_SECONDS
                _log.warning("pass failed", extra=fields(pause=pause, error=scrubbed(str(error))))
                continue
            if report.rows or report.left:
                pause = 0.0
                yield report

    def read(self, limit: int | None = None) -> list[RawRow]:
        """Step: the rows that wait, oldest first, at most ``limit`` (the configured one by default). Takes nothing."""
        return self.control.waiting(limit or self._settings.dispatch_limit)

    def claim(self, rows: Sequence[RawRow], limit: int | None = None) -> Claimed:
        """Step: take the rows, refuse those that break their own rules, rescue what a dead dispatcher left.

        At most ``limit`` rows are taken, by default as many as ``rows`` has. Where fewer can be had, because others
        hold or took them or they are refused, the next ones are read: no row keeps back those behind it.
        """
        rescued = self.control.rescue(self._settings.dispatch_limit)
        batches = Batches(self.control, limit or _number_of(rows), rows)
        claimed = Claimed()
        while not self._over() or not claimed.rows:
            claimed.add(batches.take(tuple(Branch), MOST_ROWS))
            if batches.exhausted and not (batches.look_again() and not self._stop.wait(LOCK_SECONDS)):
                break
        claimed.entries = rescued + claimed.entries
        self._untouched |= {entry.entry_id: entry for entry in claimed.entries}
        self._newest = list(claimed.entries)
        self.working_on |= {entry.entry_id for entry in claimed.entries}
        self._refused += claimed.refused
        _log_rows(claimed)
        _log_counts(claimed.counts)
        return claimed

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
        self.working_on |= set(entry_ids)
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
        self.working_on |= {entry.entry_id for entry in entries}
        for entry in entries:
            _log.info("row corrected, claimed anew", extra=fields(run_id=entry.run_id, entry=entry.entry_id))
        return entries

    def close_early(self) -> None:
        """Close what is known before other steps go on: one of them may fail for good, and ``close`` is never reached.

        What cannot be closed now is closed by ``close``, or by the next dispatch.
        """
        still_open = self.working_on - self._closed
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
        self.take_up([entry_id for entry_id in known if entry_id not in self.working_on])
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
        told = {row.run_id for row in claimed.refused}
        tally = Tally()
        tally.looked_at(claimed.rows)
        tally.refused(claimed.refused + [row for row in self._refused if row.run_id not in told])
        tally.claimed(claimed.entries)
        for outcome in (self.progress.outcomes | sent.outcomes).values():
            tally.decided(outcome)
        for item in closed:
            tally.closed(item)
        return self._reported(tally, sent, len(sent.left))

    def _reported(self, tally: Tally, sent: Sent, left: int) -> Report:
        report = tally.report(
            left=left,
            calls=sent.calls,
            api_seconds=sent.api_seconds,
            seconds=self.clock() - self._began,
            throttled=self._limiter.throttled - self._throttled_before,
        )
        _log.info("dispatch finished", extra=fields(**report.as_json()))
        return report

    def stop(self) -> None:
        """End the dispatch early: calls in flight are awaited and recorded, the rest is left. From any thread."""
        self._stop.set()

    def _over(self) -> bool:
        return self._stop.is_set() or self.clock() >= self._began + self._settings.deadline_seconds

    def ask(self, what: str, ask: Callable[[], T]) -> T:
        """Ask the database, again and again for the time that a restart of it takes."""
        return outlast(what, ask, self._stop, self.clock)

    def worker(
        self,
        feed: Feed | None = None,
        *,
        on_answer: Callable[[Work, Answer, Decision | None], None] = lambda _work, _answer, _decision: None,
        on_outcome: Callable[[RowOutcome], None] = lambda _outcome: None,
        on_closed: Callable[[Sequence[Closed]], None] = lambda _closed: None,
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
            clock=self.clock,
            on_outcome=tell,
            on_answer=on_answer,
            on_closed=on_closed,
            feed=feed,
        )


class _Pass:
    """What ``run`` knows of a pass that goes on, and the feed of its sending.

    It keeps the entries that are open. Of a row that is closed or left for later only its line of the report stays.
    """

    def __init__(self, dispatch: Dispatch, limit: int, rows: Sequence[RawRow] | None, linger: float) -> None:
        self.tally = Tally()
        self.open: dict[int, Entry] = {}
        self.sent = Sent()
        self._dispatch = dispatch
        self._batches = Batches(dispatch.control, limit, rows)
        self._feed = BatchFeed(
            self._batches, self._begin, dispatch.concurrency, dispatch.clock, linger=linger, peek=self._peek
        )
        #: What the peek found beside waiting rows.
        self._rescued: list[Entry] = []
        self._goes_on = True
        #: Entries whose row was corrected, and how often each row was claimed anew.
        self._corrected: list[Entry] = []
        self._anew: Counter[int] = Counter()
        self._counts: Counter[str] = Counter()

    def first(self, rescued: list[Entry]) -> list[Work]:
        """Claim the first batch, beside what was rescued. Until then no error costs anything, so each is raised."""
        claimed = self._feed.claim(tuple(Branch))
        claimed.entries = rescued + claimed.entries
        self._batches.ask = self._dispatch.ask
        return self._begin(claimed)

    @property
    def delay(self) -> float:
        """See ``worker.Feed``."""
        return 0.0 if self._corrected else self._feed.delay

    def take(self, waiting: int, ready: Callable[[Call], int], helps: Callable[[Work], bool]) -> list[Work]:
        """See ``worker.Feed``."""
        works = [*self._begin_anew(), *self._feed.take(waiting, ready, helps)]
        rescued, self._rescued = self._rescued, []
        return [*works, *(self._join(rescued) if rescued else ())]

    def decided(self, outcome: RowOutcome) -> None:
        """How a row left the sending."""
        self.tally.decided(outcome)
        if not self._goes_on:
            return
        entry_id = outcome.entry.entry_id
        self._batches.decided(outcome)
        self._feed.active()
        # The tally has it; what is still to be closed is kept in ``open``.
        self.sent.outcomes.pop(entry_id, None)
        if outcome.superseded:
            self._corrected.append(outcome.entry)
        if outcome.outcome in (Outcome.DEFERRED, Outcome.WITHDRAWN):
            self._let_go(entry_id)

    def closed(self, items: Sequence[Closed]) -> None:
        """What was closed; a row that was corrected before is taken as it is now."""
        for item in items:
            self.tally.closed(item)
            entry = self._let_go(item.entry_id)
            if self._goes_on:
                _log_closed(item)
            if self._goes_on and entry is not None and item.superseded:
                self._corrected.append(entry)

    def _peek(self) -> bool:
        """Whether rows came while it lingers; closes and rescues what can be by now."""
        dispatch, idle = self._dispatch, not self._batches.held
        if not dispatch.ask("look for rows", lambda: dispatch.control.has_work(ours=idle)):
            return False
        if idle and self.answered:
            self.closed(dispatch.ask("close entries", lambda: dispatch.control.close(sorted(self.answered))))
        found = dispatch.ask("rescue entries", lambda: dispatch.control.rescue(MOST_ROWS))
        # Those in flight and those to be closed are ours already.
        self._rescued += [
            replace(entry, rescued=not self.tally.knows(entry.entry_id))
            for entry in found
            if entry.entry_id not in self.open
        ]
        _log_rows(Claimed(self._rescued))
        self._batches.hold([entry for entry in self._rescued if entry.state in TO_SEND])
        return True

    @property
    def answered(self) -> set[int]:
        """The entries whose answer is known and that could not be closed."""
        return self.tally.to_close & self.open.keys()

    def end(self) -> int:
        """No row joins any more; gives how many were read and would have been taken."""
        self._goes_on = False
        _log_counts(self._counts)
        rows = self._batches.ahead()
        self.tally.looked_at(rows)
        return len(rows)

    def _begin(self, claimed: Claimed) -> list[Work]:
        _log_rows(claimed)
        self._counts.update(claimed.counts)
        self.tally.looked_at(claimed.rows)
        self.tally.refused(claimed.refused)
        return self._join(claimed.entries)

    def _begin_anew(self) -> list[Work]:
        """The rows that were corrected, as they are now."""
        if not self._corrected:
            return []
        former = [entry for entry in self._corrected if self._anew[entry.run_id] < MOST_GENERATIONS]
        self._corrected = []
        self._anew.update(entry.run_id for entry in former)
        entries = self._dispatch.claim_anew(former)
        self._batches.hold(entries)
        return self._join(entries)

    def _join(self, entries: Sequence[Entry]) -> list[Work]:
        self.tally.claimed(entries)
        kept = {entry.entry_id: entry for entry in entries if entry.state is not EntryState.DEFERRED}
        self.open |= kept
        self._dispatch.working_on |= kept.keys()
        return [Work(entry, first_step(entry)) for entry in unanswered(entries)]

    def _let_go(self, entry_id: int) -> Entry | None:
        self._dispatch.working_on.discard(entry_id)
        return self.open.pop(entry_id, None)


def _number_of(rows: Sequence[RawRow]) -> int:
    """How many of the rows have an id that the ledger can keep."""
    return sum(row_key(row) is not None for row in rows)


def unanswered(entries: Sequence[Entry]) -> list[Entry]:
    """Those of the entries that need a call."""
    return [entry for entry in entries if entry.state in TO_SEND]


def _log_rows(claimed: Claimed) -> None:
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


def _log_counts(rows: Mapping[str, int]) -> None:
    counts = fields(
        new=rows["new"],
        repair=rows["repair"],
        rescued=rows["rescued"],
        refused=rows["refused"],
        missing=rows["missing"],
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
