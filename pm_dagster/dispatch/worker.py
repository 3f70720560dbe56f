"""The loop of a dispatch: many calls in flight, one thread that decides.

Threads of a pool make one HTTP attempt each (``attempt``). The thread that called ``send`` takes the next calls from
the queue, commits their intents before they are made, asks ``rules`` what follows from each answer, and writes down
together what came back together.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Protocol

from pm_dagster.dispatch.circuit_breaker import BreakerState, CircuitBreaker, RefusalBreaker
from pm_dagster.dispatch.in_doubt import TO_SEND, answer_lost, intent_committed, is_lost
from pm_dagster.dispatch.ledger_writer import LedgerWriter
from pm_dagster.dispatch.model import (
    Again,
    Answer,
    Call,
    Decision,
    Defer,
    Entry,
    FindRun,
    Hold,
    KnownRun,
    LookUp,
    Outcome,
    Quarantine,
    RepairRun,
    RowOutcome,
    RunSnapshot,
    StartRun,
    Step,
    Stop,
    Withdraw,
    Work,
)
from pm_dagster.dispatch.ports import Change, ControlPlane, DatabricksRuns, Event
from pm_dagster.dispatch.rate_limiter import RateLimiter
from pm_dagster.dispatch.rules import (
    Facts,
    Held,
    Policy,
    after_witness,
    change_for,
    decide,
    first_step,
    of_another_job,
    outcome_of,
    refusal_at_stake,
    refused_and_not_called_again,
    runs_to_know,
    state_while_going_on,
    without_witness,
)
from pm_dagster.errors import ProcessManagerError, Refused, Throttled, WorkspaceUnavailable
from pm_dagster.logs import fields

_log = logging.getLogger(__name__)

#: Longest sleep of the loop, so that stop requests and heartbeats are handled in time.
_LONGEST_WAIT = 0.5
#: A row that is corrected this often within one dispatch is left for the next one.
_MOST_RESTARTS = 10
_MOST_TOLD = 5
#: Outcomes that an operator may ask about are logged at info, the others at debug.
_UNUSUAL = (Outcome.DEFERRED, Outcome.QUARANTINED, Outcome.WITHDRAWN)


@dataclass
class Sent:
    """The result of one stretch of sending.

    Attributes:
        outcomes: How rows left, by entry id.
        prepared: Rows whose next call starts something, where that is another step's.
        followed: The new generations of rows that were corrected, claimed on the way.
        left: Entries for which the time was too short, or that a stop request left.
        calls: Calls to the Jobs API.
        api_seconds: Their duration, summed over all calls.
    """

    outcomes: dict[int, RowOutcome] = field(default_factory=dict)
    prepared: list[Work] = field(default_factory=list)
    followed: list[Entry] = field(default_factory=list)
    left: list[Entry] = field(default_factory=list)
    calls: int = 0
    api_seconds: float = 0.0

    @classmethod
    def of(cls, parts: Iterable[Sent]) -> Sent:
        """One result of several stretches of sending."""
        whole = cls()
        for part in parts:
            whole.add(part)
        return whole

    def add(self, other: Sent) -> None:
        """Take in what a later stretch brought."""
        self.outcomes |= other.outcomes
        self.prepared += other.prepared
        self.followed += other.followed
        self.left += other.left
        self.calls += other.calls
        self.api_seconds += other.api_seconds


@dataclass(frozen=True)
class Limits:
    """How much at once, and until when (``deadline`` on the worker's monotonic clock)."""

    concurrency: int
    deadline: float


# ---- one call


def attempt(work: Work, runs: DatabricksRuns, clock: Callable[[], float]) -> Answer:
    """Make the call; runs in a thread of the pool. Never raises a ProcessManagerError."""
    began = clock()
    try:
        return Answer(_call(work, runs), None, clock() - began)
    except ProcessManagerError as error:
        return Answer(None, error, clock() - began)


def _call(work: Work, runs: DatabricksRuns) -> object:
    entry, step = work.entry, work.step
    if isinstance(step, StartRun):
        return runs.start(entry.job_id, entry.parameters, entry.idempotency_token)
    if isinstance(step, RepairRun):
        return runs.repair(_previous(entry), entry.parameters, step.latest_repair_id)
    if isinstance(step, FindRun):
        since = entry.intent_at or datetime.fromtimestamp(0, UTC)
        return runs.find_started(entry.job_id, since, entry.parameters)
    return runs.look_up(_previous(entry))


def _previous(entry: Entry) -> int:
    if entry.previous_run_id is None:
        message = f"entry {entry.entry_id} has no previous run to look up or repair"
        raise ValueError(message)
    return entry.previous_run_id


def event_of(work: Work, answer: Answer, scrub: Callable[[str], str]) -> Event:
    """The line of history for one attempt."""
    status = getattr(answer.error, "status", None) if answer.error else 200
    if answer.error is not None:
        detail = scrub(str(answer.error))
    elif isinstance(answer.value, RunSnapshot):
        run = answer.value
        detail = f"run {run.run_id} is {run.words}, latest repair {run.latest_repair_id or 'none'}"
    elif isinstance(answer.value, list):
        detail = f"runs that may be meant: {', '.join(map(str, answer.value[:_MOST_TOLD])) or 'none'}"
    else:
        detail = f"{'repair' if work.call is Call.REPAIR else 'run'} {answer.value}"
    return Event(kind="answer", detail=detail, call=work.call, status=status, seconds=answer.seconds)


# ---- the calls that wait


class CallQueue:
    """The rows that wait for their next call: of each endpoint the earliest due first, as the rate limiter allows.

    For the one deciding thread; ``clock`` is monotonic seconds.
    """

    def __init__(self, limiter: RateLimiter, clock: Callable[[], float]) -> None:
        self._limiter = limiter
        self._clock = clock
        self._due: dict[Call, list[tuple[float, int, Work]]] = {call: [] for call in Call}
        self._order = itertools.count()

    def __len__(self) -> int:
        """How many rows wait."""
        return sum(map(len, self._due.values()))

    def __iter__(self) -> Iterator[Work]:
        """The rows that wait, in no order."""
        return (work for queue in self._due.values() for _, _, work in queue)

    def add(self, work: Work, delay: float) -> None:
        """Let the row's next call wait for at least ``delay`` seconds."""
        heapq.heappush(self._due[work.call], (self._clock() + delay, next(self._order), work))

    def take(self, room: int) -> list[Work]:
        """The rows whose call is due and within its rate, at most ``room``."""
        taken: list[Work] = []
        for call, queue in self._due.items():
            while queue and len(taken) < room:
                if queue[0][0] > self._clock() or self._limiter.delay(call) > 0:
                    break
                work = heapq.heappop(queue)[2]
                work.start = self._limiter.take(call)
                taken.append(work)
        return taken

    def probe(self, avoid: Callable[[Work], bool]) -> list[Work]:
        """One row whose call is due and within its rate, rather one that is not to be avoided; empty without one."""
        now = self._clock()
        paced = [queue for call, queue in self._due.items() if self._limiter.delay(call) <= 0]
        ready = [item for queue in paced for item in queue if item[0] <= now]
        if not ready:
            return []
        item = min(ready, key=lambda item: (avoid(item[2]), item[0], item[1]))
        work = item[2]
        queue = self._due[work.call]
        queue.remove(item)
        heapq.heapify(queue)
        work.start = self._limiter.take(work.call)
        return [work]

    def set_aside(self, calls: Sequence[Call]) -> list[Work]:
        """Take out all rows that wait for these calls, due or not."""
        aside = [work for call in calls for _, _, work in self._due[call]]
        self._due.update({call: [] for call in calls})
        return aside

    @property
    def delay(self) -> float:
        """Seconds until the next row may be taken; infinite when none waits."""
        moments = (max(self._limiter.delay(c), q[0][0] - self._clock()) for c, q in self._due.items() if q)
        return max(0.0, min(moments, default=float("inf")))


# ---- where rows come from


class Feed(Protocol):
    """Gives a stretch of sending further rows while it goes on; the deciding thread asks between two rounds."""

    @property
    def delay(self) -> float:
        """Seconds until it may have further rows; infinite once it has none any more."""

    def take(self, waiting: int) -> Sequence[Work]:
        """The rows that join now, each with its first call; ``waiting`` rows still wait for theirs.

        It may write to the ledger, for no other thread does meanwhile. What it raises ends the sending.
        """


class NoFeed:
    """A feed without rows: the stretch of sending ends with the rows that it began with."""

    delay = float("inf")

    def take(self, waiting: int) -> Sequence[Work]:  # noqa: ARG002 the protocol's
        """No rows."""
        return ()


# ---- the loop


class Worker:
    """Takes entries to their outcome. For one stretch of sending; not thread-safe.

    Rate limiter and circuit breakers are the dispatch's: they remember what earlier stretches saw. ``stop`` asks to end
    early: calls in flight are awaited and recorded, the rest is left.
    """

    def __init__(
        self,
        control: ControlPlane,
        runs: DatabricksRuns,
        policy: Policy,
        limits: Limits,
        limiter: RateLimiter,
        breaker: CircuitBreaker,
        refusals: RefusalBreaker,
        *,
        stop: threading.Event,
        clock: Callable[[], float] = time.monotonic,
        on_outcome: Callable[[RowOutcome], None] = lambda _outcome: None,
        feed: Feed | None = None,
    ) -> None:
        self._feed = feed or NoFeed()
        self._ledger = LedgerWriter(control, stop, clock)
        self._runs = runs
        self._policy = policy
        self._limits = limits
        self._limiter = limiter
        self._breaker = breaker
        self._refusals = refusals
        self._stop = stop
        self._clock = clock
        self._on_outcome = on_outcome
        self._queue = CallQueue(limiter, clock)
        self._in_flight: dict[Future[Answer], Work] = {}
        self._failure: ProcessManagerError | None = None
        self._sent = Sent()
        #: What the ledger knows of the runs that were just found, and what this dispatch took since.
        self._known: dict[int, list[KnownRun]] = {}
        self._taken: list[KnownRun] = []
        #: Runs that a search found, until the ledger has them as the row's.
        self._found: dict[int, tuple[Work, RowOutcome]] = {}
        self._broken_off = False

    @property
    def sent(self) -> Sent:
        """What came of it until now, also when ``send`` raised."""
        return self._sent

    def send(self, works: Sequence[Work], *, prepare_only: bool = False) -> Sent:
        """Take each row to its outcome.

        Args:
            works: The rows, each with its first call.
            prepare_only: Stops before each call that starts something; those rows are in ``prepared``.

        Returns:
            What came of each row. Rows for which the time was too short, or that a stop request left, are in ``left``.

        Raises:
            AuthenticationFailed, WorkspaceUnavailable, Defect, AllStartsRefused: Going on is pointless.
            ControlPlaneUnavailable: The database stays away.

        Whatever it raises, what was learned until then is recorded as far as the database allows; ``sent`` has it.
        """
        self._breaker.begin()
        for work in works:
            self._take_step(work, work.step, 0.0)
        pool = ThreadPoolExecutor(self._limits.concurrency, thread_name_prefix="databricks-call")
        try:
            self._loop(pool, prepare_only=prepare_only)
            self._settle_refusals()
        except BaseException:
            self._salvage()
            raise
        finally:
            pool.shutdown(wait=True)
        unsent = [work for work in self._queue if work.entry.entry_id not in self._sent.outcomes]
        self._sent.left += [work.entry for work in unsent]
        if self._failure is None and unsent:
            reason = "stop requested" if self._stop.is_set() else "deadline"
            _log.info("sending ended early", extra=fields(reason=reason, left=len(unsent)))
            for work in unsent:
                _log.debug("row not sent", extra=_about(work))
        if self._failure is not None:
            _log.warning("sending stopped", extra=fields(error=type(self._failure).__name__, left=len(self._sent.left)))
            raise self._failure
        return self._sent

    def _loop(self, pool: ThreadPoolExecutor, *, prepare_only: bool) -> None:
        while True:
            if prepare_only:
                self._sent.prepared += self._queue.set_aside((Call.RUN_NOW, Call.REPAIR))
            if not self._ending() and self._refusals.exhausted:
                self._failure = self._refusals.error
            if not self._ending() and self._feed.delay <= 0:
                for work in self._feed.take(len(self._queue)):
                    self._take_step(work, work.step, 0.0)
            if not self._ending():
                self._submit(pool, self._next())
            if not self._in_flight and (self._ending() or self._nothing_in_time()):
                return
            self._collect(self._pause())
            self._ledger.flush()

    def _ending(self) -> bool:
        return self._failure is not None or self._stop.is_set() or self._clock() >= self._limits.deadline

    def _nothing_in_time(self) -> bool:
        """Whether no row waits or may still come, or none before the deadline: a long Retry-After is no wait."""
        return min(self._queue.delay, self._feed.delay) > self._limits.deadline - self._clock()

    # ---- making calls

    def _all_closed(self) -> bool:
        return self._breaker.state is BreakerState.CLOSED and self._refusals.state is BreakerState.CLOSED

    def _delay(self) -> float:
        return max(self._breaker.delay, self._refusals.delay)

    def _room(self) -> int:
        if self._delay() > 0:
            return 0
        return (1 if not self._all_closed() else self._limits.concurrency) - len(self._in_flight)

    def _next(self) -> list[Work]:
        room = self._room()
        probing = not self._all_closed()
        works = self._queue.probe(self._is_affected) if probing and room > 0 else self._queue.take(room)
        for work in works:
            work.probing = probing
            if probing:
                _log.info("single call", extra=_about(work))
        return works

    def _is_affected(self, work: Work) -> bool:
        """Whether a call like this one was in the trouble that single calls are to find out about."""
        refused = self._refusals.state is not BreakerState.CLOSED and work.entry.job_id in self._refusals.affected
        return work.kind in self._breaker.affected or refused

    def _take_step(self, work: Work, step: Step, delay: float) -> None:
        work.step = step
        self._queue.add(work, delay)

    def _submit(self, pool: ThreadPoolExecutor, works: list[Work]) -> None:
        intended = {work.entry.entry_id: _intended(work) for work in works if work.changes_workspace}
        granted = self._ledger.intend(list(intended.values()))
        self._begin_again([work for work in works if work.entry.entry_id in intended.keys() - granted])
        for work in works:
            if work.changes_workspace:
                if work.entry.entry_id not in granted:
                    self._limiter.withdraw(work.call, work.start)
                    continue
                work.entry = intended[work.entry.entry_id]
                _log.debug("intent committed", extra=_about(work))
            self._limiter.sent(work.start)
            self._in_flight[pool.submit(attempt, work, self._runs, self._clock)] = work

    def _begin_again(self, works: list[Work]) -> None:
        """Take up, as they are now, the rows that were corrected since they were claimed; the others are not ours."""
        standing = {entry.entry_id: entry for entry in self._ledger.resume([work.entry.entry_id for work in works])}
        for work in works:
            entry = standing.get(work.entry.entry_id)
            if entry is None or entry.state not in TO_SEND:
                reason = "the row left WAITING, or another dispatch took it, before anything was sent"
                self._leave(work, outcome_of(work, Withdraw(reason)))
            elif work.restarts >= _MOST_RESTARTS:
                self._sent.left.append(entry)
                _log.info("row left for the next dispatch", extra=_about(work, restarts=work.restarts))
            else:
                again = Work(entry, first_step(entry), restarts=work.restarts + 1)
                self._take_step(again, again.step, 0.0)
                _log.debug("row begun again", extra=_about(again))

    def _pause(self) -> float:
        if self._ending() or self._room() <= 0:
            return min(_LONGEST_WAIT, self._delay() or _LONGEST_WAIT)
        return min(_LONGEST_WAIT, self._queue.delay, self._feed.delay)

    # ---- taking answers in

    def _collect(self, pause: float) -> None:
        if not self._in_flight:
            self._stop.wait(pause)
            return
        done, _ = wait(self._in_flight, timeout=pause, return_when=FIRST_COMPLETED)
        refused = self._ledger.record(self._learn_all(done))
        found, self._found = self._found, {}
        for entry_id, (work, outcome) in found.items():
            if entry_id in refused:
                # The ledger knows whose it is by now, so the search looks on.
                self._taken = [item for item in self._taken if item.entry_id != entry_id]
                self._take_step(work, work.step, 0.0)
                _log.info("run passed over", extra=_about(work, run=outcome.run_id))
            else:
                self._leave(work, outcome)

    def _salvage(self) -> None:
        """Await and record the calls in flight when the loop is broken from outside."""
        done, _ = wait(self._in_flight)
        self._broken_off = True
        _log.warning("sending broken off", extra=fields(in_flight=len(done)))
        self._ledger.record_once(self._learn_all(done))

    def _learn_all(self, done: set[Future[Answer]]) -> list[Change]:
        if not self._broken_off:
            found = {run_id for future in done for run_id in runs_to_know(self._in_flight[future], future.result())}
            self._known = _by_run([*self._taken, *self._ledger.known_runs(found)])
        changes = [c for future in done for c in self._learn(self._in_flight.pop(future), future.result())]
        return _one_for_each_entry(changes)

    def _learn(self, work: Work, answer: Answer) -> list[Change]:
        """Decide what an answer means, queue what follows, and return what the ledger should know."""
        self._sent.calls += 1
        self._sent.api_seconds += answer.seconds
        event = event_of(work, answer, self._runs.scrub)
        lost = self._note(work, answer)
        witnessed = [self._after_witness(held, work) for held in self._refusals.note(work, answer.error)]
        if self._broken_off and runs_to_know(work, answer):
            # Whose it is cannot be asked any more: the next dispatch finds it again.
            return [Change(work.entry.entry_id, (event,)), *witnessed]
        decision = decide(work, answer, self._facts(work, answer.error), self._policy)
        _log.debug("call decided", extra=_decided(work, answer, decision))
        return [self._carry_out(work, answer, decision, event, lost=lost), *witnessed]

    def _note(self, work: Work, answer: Answer) -> bool:
        """Keep what an answer moves; true when a call may have taken effect unseen."""
        error = answer.error
        self._breaker.note(error, work.kind)
        if isinstance(answer.value, RunSnapshot):
            work.seen = answer.value
        if isinstance(error, WorkspaceUnavailable):
            work.unanswered[work.call] += 1
        elif work.call is Call.GET_RUN:
            work.unanswered[work.call] = 0
        if isinstance(error, Refused):
            work.refusals[work.call] += 1
            work.refused[work.call] = error
        lost = work.changes_workspace and is_lost(error)
        if lost:
            work.entry = answer_lost(work.entry)
            _log.info("call in doubt", extra=_about(work))
        return lost

    def _facts(self, work: Work, error: ProcessManagerError | None) -> Facts:
        """What the rules are to know; a 429 slows its endpoint down."""
        pause = 0.0
        if isinstance(error, Throttled):
            pause = self._limiter.throttle(work.call, error.retry_after, work.start)
            _log.warning("throttled", extra=_about(work, pause=pause, rate=self._limiter.rate(work.call)))
        return Facts(
            throttle_pause=pause,
            seconds_left=self._limits.deadline - self._clock(),
            outage=self._breaker.outage,
            proven=self._refusals.proves(work, refusal_at_stake(work, error)),
            known=self._known,
        )

    def _carry_out(self, work: Work, answer: Answer, decision: Decision, event: Event, *, lost: bool) -> Change:
        if isinstance(decision, Hold):
            self._refusals.hold(work, decision)
            _log.info("refusal held", extra=_about(work))
        if isinstance(decision, Quarantine):
            self._refusals.discard(work)
        outcome = outcome_of(work, decision)
        if outcome is None:
            self._go_on(work, decision)
            state = state_while_going_on(work.entry, decision, answer.error)
            reason = decision.reason if isinstance(decision, Hold) else None
            return Change(work.entry.entry_id, (event,), state, reason=reason, ambiguous=lost)
        change = change_for(outcome, event, self._link(work, outcome), ambiguous=lost)
        if outcome.run_id is not None:
            self._note_run(outcome, outcome.run_id)
        if work.call is Call.LIST_RUNS and outcome.run_id is not None:
            self._found[outcome.entry.entry_id] = work, outcome
            return replace(change, found=True)
        self._leave(work, outcome)
        return change

    def _go_on(self, work: Work, decision: Decision) -> None:
        """Queue what follows, or stop."""
        if isinstance(decision, Stop):
            self._failure = self._failure or decision.error
            self._sent.left.append(work.entry)
        elif isinstance(decision, Again):
            self._take_step(work, work.step, decision.delay)
        elif isinstance(decision, LookUp):
            self._take_step(work, decision, decision.delay)
        elif isinstance(decision, (StartRun, RepairRun, FindRun)):
            self._take_step(work, decision, 0.0)

    # ---- refusals that were held

    def _after_witness(self, held: Held, witness: Work) -> Change:
        decision = after_witness(held, witness.entry.job_id, self._policy)
        if isinstance(decision, Quarantine):
            self._refusals.prove(held)
        return self._conclude(held.work, decision)

    def _settle_refusals(self) -> None:
        """Decide the refusals that no later answer has decided."""
        witnesses, error = self._refusals.witnesses, self._refusals.error
        changes = [
            self._conclude(work, refused_and_not_called_again(work, self._policy, all_refused=witnesses.all_refused))
            for work in self._queue
            if work.refused
        ]
        blame = self._failure is None
        for held in self._refusals.release():
            decision = without_witness(held, witnesses, self._policy, blame=blame)
            changes.append(self._conclude(held.work, decision))
        self._ledger.record(changes)
        self._failure = self._failure or error

    def _conclude(self, work: Work, decision: Quarantine | Defer) -> Change:
        """Let a row leave whose refusal is recorded already."""
        outcome = outcome_of(work, decision)
        self._leave(work, outcome)
        return change_for(outcome, None, None, ambiguous=False)

    # ---- how rows leave

    def _leave(self, work: Work, outcome: RowOutcome) -> None:
        self._sent.outcomes[outcome.entry.entry_id] = outcome
        level = logging.INFO if outcome.outcome in _UNUSUAL else logging.DEBUG
        about = _about(work, run=outcome.run_id, pause=outcome.defer_seconds, rule=outcome.rule)
        _log.log(level, f"row {outcome.outcome.value}", extra=about)
        self._on_outcome(outcome)

    def _note_run(self, outcome: RowOutcome, run_id: int) -> None:
        """From now on the run is this row's, also for answers that came together with this one."""
        entry = outcome.entry
        number, more = (entry.run_id, entry.generation), (outcome.repair_id, outcome.superseded)
        taken = KnownRun(run_id, entry.entry_id, self._policy.control_table, *number, *more)
        self._taken.insert(0, taken)
        self._known.setdefault(run_id, []).insert(0, taken)

    def _link(self, work: Work, outcome: RowOutcome) -> str | None:
        """The link to the run's page: the API's own where the run is of another job than the row names."""
        if outcome.run_id is None:
            return None
        seen = work.seen
        if seen is None or seen.run_id != outcome.run_id or not of_another_job(work.entry, seen.job_id):
            return self._runs.page_url(work.entry.job_id, outcome.run_id)
        if seen.page_url and seen.page_url.startswith(("https://", "http://")):
            return seen.page_url
        return self._runs.page_url(seen.job_id or work.entry.job_id, outcome.run_id)


def _one_for_each_entry(changes: Sequence[Change]) -> list[Change]:
    """What was learned, told once for each entry: a refusal and what became of it may come together."""
    told: dict[int, Change] = {}
    for change in changes:
        before = told.get(change.entry_id)
        if before is not None:
            told[change.entry_id] = replace(
                change, events=before.events + change.events, ambiguous=before.ambiguous or change.ambiguous
            )
        else:
            told[change.entry_id] = change
    return list(told.values())


def _by_run(known: Sequence[KnownRun]) -> dict[int, list[KnownRun]]:
    """What is known of each run, in the order given."""
    found: dict[int, list[KnownRun]] = {}
    for item in known:
        found.setdefault(item.databricks_run_id, []).append(item)
    return found


def _intended(work: Work) -> Entry:
    if isinstance(work.step, RepairRun):
        return intent_committed(work.entry, latest_repair_id=work.step.latest_repair_id)
    return intent_committed(work.entry, fresh_run=not work.entry.starts_new_run)


def _about(work: Work, **more: object) -> dict[str, dict[str, object]]:
    """What a log event says of a row."""
    return fields(run_id=work.entry.run_id, entry=work.entry.entry_id, call=work.call.value, **more)


def _decided(work: Work, answer: Answer, decision: Decision) -> dict[str, dict[str, object]]:
    pause = decision.seconds if isinstance(decision, Defer) else getattr(decision, "delay", 0.0)
    error = type(answer.error).__name__ if answer.error else None
    return _about(work, decision=type(decision).__name__, pause=pause, seconds=answer.seconds, error=error)
