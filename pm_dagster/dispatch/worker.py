"""The loop of a dispatch: many calls in flight, one thread that decides.

Threads of a pool make one HTTP attempt each (``attempt``). The thread that called ``send`` goes round: it takes in the
answers that came, asks ``rules`` what follows from each, takes the next calls from the queue, and commits answers and
intents in one transaction. Then the calls may be made.

**Calls ahead.** More calls are submitted than the pool has threads, so that a thread that gets free has its next call
at once and does not wait for a round. A call ahead leaves only after a good answer: as long as an answer that failed is
not decided, it is handed back instead. A stop request, the deadline, a failure that ends the sending, a circuit breaker
that opens, and a 429 of the same endpoint withdraw what has not left. It is certain that nothing was sent for such a
row, so its entry goes back to what it was before the intent, with an event that says why.

A process that is killed leaves the intents of its calls ahead in the ledger. Nobody can tell them from calls that were
made, so the rescuer resolves them in the same way: by the token, or by the run's history. A row that its owner corrects
between intent and call is sent as it was, as if the call had left already; calls ahead make that time longer, by the
time that a call waits for a free thread.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from queue import Empty, SimpleQueue
from typing import Protocol

from pm_dagster.dispatch.circuit_breaker import BreakerState, CircuitBreaker, RefusalBreaker
from pm_dagster.dispatch.in_doubt import TO_SEND, answer_lost, intent_committed, is_lost, released
from pm_dagster.dispatch.ledger_writer import LedgerWriter
from pm_dagster.dispatch.model import (
    Again,
    Answer,
    Call,
    Decision,
    Defer,
    Entry,
    EntryState,
    FindRun,
    Hold,
    KnownRun,
    LookUp,
    MorePages,
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
from pm_dagster.dispatch.ports import Change, Closed, ControlPlane, DatabricksRuns, Event
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
from pm_dagster.dispatch.shared_budget import SharedBudget
from pm_dagster.errors import ProcessManagerError, Refused, Throttled, WorkspaceUnavailable
from pm_dagster.logs import fields

_log = logging.getLogger(__name__)

#: Longest sleep of the loop, so that stop requests and heartbeats are handled in time.
_LONGEST_WAIT = 0.5
#: So many calls more than there are threads are submitted, for each thread.
_AHEAD = 1 / 3
#: Answers are gathered for so long while calls ahead are left for the threads that get free.
_GATHER_SECONDS = 0.035
#: A row that is corrected this often within one dispatch is left for the next one.
_MOST_RESTARTS = 10
_MOST_TOLD = 5
#: More calls of one endpoint than these are not counted: no dispatch reserves as many at once.
_MOST_COUNTED = 64
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

    @property
    def ahead(self) -> int:
        """How many calls more are submitted than can be in flight; none where each call is to be decided by itself."""
        return max(1, int(self.concurrency * _AHEAD)) if self.concurrency > 1 else 0


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
    if work.more is not None:
        try:
            return work.more.next_page()
        except Refused as refusal:
            # The first page was given, so it is about the page: the workspace may have forgotten where it was.
            message = f"a further page was refused: {refusal}"
            raise WorkspaceUnavailable(message, maybe_applied=False, status=refusal.status) from refusal
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

    def due(self, room: int) -> dict[Call, int]:
        """How many calls of each endpoint are due, as far as that matters to their pace; at most ``room``."""
        now = self._clock()
        heads = {call: itertools.islice(queue, _MOST_COUNTED) for call, queue in self._due.items() if queue}
        room = max(0, room)
        return {call: min(room, sum(moment <= now for moment, _, _ in head)) for call, head in heads.items()}

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

    def ready(self, call: Call, wanted: Callable[[Work], bool]) -> int:
        """How many of the rows that are wanted could make this call by now, as far as its rate allows."""
        now = self._clock()
        return sum(moment <= now and wanted(work) for moment, _, work in self._due[call])

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
    """Gives a stretch of sending further rows while it goes on; the deciding thread asks in each round."""

    @property
    def delay(self) -> float:
        """Seconds until it may have further rows; infinite while it has none unless others are sent first."""

    def take(self, waiting: int, ready: Callable[[Call], int], helps: Callable[[Work], bool]) -> Sequence[Work]:
        """The rows that join now, each with its first call. It is asked once in each round.

        It may write to the ledger, for no other thread does meanwhile. What it raises ends the sending.

        Args:
            waiting: How many rows wait for their next call; none while calls are in trouble.
            ready: How many of them could make this call by now, and are not like those in trouble.
            helps: Whether the call of a row is not like those in trouble.
        """


class NoFeed:
    """A feed without rows: the stretch of sending ends with the rows that it began with."""

    delay = float("inf")

    def take(self, waiting: int, ready: Callable[[Call], int], helps: Callable[[Work], bool]) -> Sequence[Work]:  # noqa: ARG002 the protocol's
        """No rows."""
        return ()


# ---- the loop


class Worker:
    """Takes entries to their outcome. For one stretch of sending; not thread-safe.

    Rate limiter and circuit breakers are the dispatch's: they remember what earlier stretches saw. ``stop`` asks to end
    early: calls in flight are awaited and recorded, the rest is left. ``on_answer`` is told of each call with what was
    decided, before that is carried out (None: nothing could be decided), ``on_outcome`` of each row that leaves; what
    they are told is in the ledger two rounds later, or when ``send`` ends.
    """

    def __init__(
        self,
        control: ControlPlane,
        runs: DatabricksRuns,
        policy: Policy,
        limits: Limits,
        limiter: RateLimiter,
        budget: SharedBudget,
        breaker: CircuitBreaker,
        refusals: RefusalBreaker,
        *,
        stop: threading.Event,
        clock: Callable[[], float] = time.monotonic,
        on_outcome: Callable[[RowOutcome], None] = lambda _outcome: None,
        on_answer: Callable[[Work, Answer, Decision | None], None] = lambda _work, _answer, _decision: None,
        on_closed: Callable[[Sequence[Closed]], None] = lambda _closed: None,
        feed: Feed | None = None,
    ) -> None:
        self._feed = feed or NoFeed()
        self._ledger = LedgerWriter(control, stop, clock, on_closed)
        self._runs = runs
        self._policy = policy
        self._limits = limits
        self._limiter = limiter
        self._budget = budget
        self._breaker = breaker
        self._refusals = refusals
        self._stop = stop
        self._clock = clock
        self._on_outcome = on_outcome
        self._on_answer = on_answer
        self._queue = CallQueue(limiter, clock)
        #: The calls that were submitted and whose answer was not taken in.
        self._in_flight: dict[Future[Answer | None], Work] = {}
        self._ended: SimpleQueue[Future[Answer | None]] = SimpleQueue()
        #: The entries whose call failed, until that is decided. Written by the calling threads as well.
        self._undecided: set[int] = set()
        #: Calls ahead that were handed back; they are made or withdrawn.
        self._handed_back: list[Work] = []
        #: The endpoints that answered 429 since calls were last withdrawn.
        self._throttled: set[Call] = set()
        #: What was learned and is not written.
        self._learned: list[Change] = []
        self._failure: ProcessManagerError | None = None
        self._sent = Sent()
        #: What the ledger knows of the runs that were just found, and what this dispatch took since.
        self._known: dict[int, list[KnownRun]] = {}
        self._taken: dict[int, list[KnownRun]] = {}
        #: Runs that a search found, until the ledger has them as the row's.
        self._found: dict[int, tuple[Work, RowOutcome]] = {}
        self._broken_off = False
        #: Rows that left while they waited for a call.
        self._concluded: set[int] = set()

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
        self._budget.leave()
        unsent = [work for work in self._queue if work.entry.entry_id not in self._concluded]
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
        self._ask_feed()
        while True:
            if prepare_only:
                self._sent.prepared += self._queue.set_aside((Call.RUN_NOW, Call.REPAIR))
            if not self._ending() and self._refusals.exhausted:
                self._failure = self._refusals.error
            self._withdraw()
            # Their intents stand.
            handed_back, self._handed_back = self._handed_back, []
            for work in handed_back:
                self._submit(pool, work)
            self._write(pool, [] if self._ending() else self._next())
            if self._limits.ahead:
                # What may take long comes while the calls ahead are at their most.
                self._ask_feed()
                self._ledger.flush()
            if not self._in_flight and (self._ending() or self._nothing_in_time()):
                return
            self._collect(self._pause())
            if not self._limits.ahead:
                # Each call is decided, written down and closed before the next one.
                self._write(pool, [])
                self._ledger.flush()
                self._ask_feed()

    def _ask_feed(self) -> None:
        if not self._ending():
            waiting = len(self._queue) if self._all_closed() else 0
            for work in self._feed.take(waiting, self._ready, self._helps):
                self._take_step(work, work.step, 0.0)

    def _ending(self) -> bool:
        return self._failure is not None or self._stop.is_set() or self._clock() >= self._limits.deadline

    def _nothing_in_time(self) -> bool:
        """Whether no row waits or may still come, or none before the deadline: a long Retry-After is no wait."""
        return min(self._queue.delay, self._feed.delay) > self._limits.deadline - self._clock()

    # ---- making calls

    def _helps(self, work: Work) -> bool:
        return self._all_closed() or not self._is_affected(work)

    def _ready(self, call: Call) -> int:
        return self._queue.ready(call, self._helps)

    def _all_closed(self) -> bool:
        return self._breaker.state is BreakerState.CLOSED and self._refusals.state is BreakerState.CLOSED

    def _delay(self) -> float:
        return max(self._breaker.delay, self._refusals.delay)

    def _room(self) -> int:
        if self._delay() > 0:
            return 0
        most = self._limits.concurrency + self._limits.ahead if self._all_closed() else 1
        return most - len(self._in_flight) - len(self._handed_back)

    def _next(self) -> list[Work]:
        room = self._room()
        self._budget.take_part(self._queue.due(room))
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
        if step is not work.step:
            work.more = None
        work.step = step
        self._queue.add(work, delay)

    def _write(self, pool: ThreadPoolExecutor, works: list[Work]) -> None:
        """Write what was learned and the intents of these calls in one transaction, and let the calls go."""
        learned, self._learned = _one_for_each_entry(self._learned), []
        intended = {work.entry.entry_id: _intended(work) for work in works if work.changes_workspace}
        passed_over, granted = self._ledger.write(learned, list(intended.values()))
        self._settle_found(passed_over)
        for work in works:
            if work.changes_workspace:
                if work.entry.entry_id not in granted:
                    self._limiter.withdraw(work.call, work.start)
                    continue
                work.entry = intended[work.entry.entry_id]
                _log.debug("intent committed", extra=_about(work))
            self._submit(pool, work)
        self._begin_again([work for work in works if work.entry.entry_id in intended.keys() - granted])

    def _submit(self, pool: ThreadPoolExecutor, work: Work) -> None:
        ahead = len(self._in_flight) >= self._limits.concurrency
        future = pool.submit(self._make, work, ahead=ahead)
        self._in_flight[future] = work
        future.add_done_callback(self._ended.put)

    def _make(self, work: Work, *, ahead: bool) -> Answer | None:
        """Make a call, in a thread of the pool; None when it may not leave: the sending ends, or a failure is open."""
        if self._ending() or (ahead and self._undecided):
            return None
        self._limiter.sent(work.start)
        answer = attempt(work, self._runs, self._clock)
        if answer.error is not None:
            self._undecided.add(work.entry.entry_id)
        return answer

    def _withdraw(self) -> None:
        """Take back the calls that have not left and may not leave any more."""
        throttled, self._throttled = self._throttled, set()
        if self._ending():
            why = "the dispatch ends"
        elif self._delay() > 0 or not self._all_closed():
            why = "a circuit breaker opened"
        elif throttled:
            why = "the workspace throttles"
        else:
            return

        def concerned(work: Work) -> bool:
            return self._ending() or not self._all_closed() or work.call in throttled

        taken_back = [work for work in self._handed_back if concerned(work)]
        self._handed_back = [work for work in self._handed_back if not concerned(work)]
        for future, work in list(self._in_flight.items()):
            # A single call is what finds out whether a breaker may close.
            alone = work.probing and not self._ending()
            if not work.start.left and not alone and concerned(work) and future.cancel():
                del self._in_flight[future]
                taken_back.append(work)
        for work in taken_back:
            self._take_back(work, why)

    def _take_back(self, work: Work, why: str) -> None:
        """Let a call that did not leave wait again, as if it had not been intended."""
        self._limiter.withdraw(work.call, work.start)
        if work.changes_workspace:
            state = released(work.entry, EntryState.CLAIMED)
            event = Event("not sent", f"{work.call.value} had not left: {why}")
            self._learned.append(Change(work.entry.entry_id, (event,), state))
            work.entry = replace(work.entry, state=state or work.entry.state)
        self._take_step(work, work.step, 0.0)
        _log.debug("call withdrawn", extra=_about(work, reason=why))

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
        if self._ending():
            pause = min(_LONGEST_WAIT, self._delay() or _LONGEST_WAIT)
        elif self._room() <= 0:
            # Further rows are had while the calls are under way.
            pause = min(_LONGEST_WAIT, self._delay() or _LONGEST_WAIT, self._feed.delay)
        else:
            share = self._budget.delay if any(self._queue.due(1).values()) else math.inf
            pause = min(_LONGEST_WAIT, self._queue.delay, self._feed.delay, share)
        left = self._limits.deadline - self._clock()
        return min(pause, left) if self._waiting_ahead() and left > 0 else pause

    def _waiting_ahead(self) -> int:
        """How many calls wait for a thread."""
        return sum(not work.start.left for work in self._in_flight.values())

    # ---- taking answers in

    def _collect(self, pause: float) -> None:
        if not self._in_flight:
            self._stop.wait(pause)
            return
        self._learned += self._learn_all(self._gather(pause))

    def _gather(self, pause: float) -> list[Future[Answer | None]]:
        """Wait for an answer, and for others that come soon after it while the threads have calls ahead to make."""
        until = time.monotonic() + pause
        found: list[Future[Answer | None]] = []
        while True:
            try:
                found.append(self._ended.get(timeout=max(0.0, until - time.monotonic())))
            except Empty:
                break
            if len(found) == 1:
                until = time.monotonic() + _GATHER_SECONDS
            if self._undecided or not self._waiting_ahead():
                until = 0.0
        # One that was withdrawn has ended as well.
        return [future for future in found if future in self._in_flight]

    def _settle_found(self, passed_over: set[int]) -> None:
        """Let the rows leave whose run a search found, as far as the ledger has it as theirs."""
        found, self._found = self._found, {}
        for entry_id, (work, outcome) in found.items():
            if entry_id in passed_over:
                # The ledger knows whose it is by now, so the search looks on.
                run_id = outcome.run_id or 0
                self._taken[run_id] = [item for item in self._taken.get(run_id, []) if item.entry_id != entry_id]
                self._take_step(work, work.step, 0.0)
                _log.info("run passed over", extra=_about(work, run=outcome.run_id))
            else:
                self._leave(work, outcome)

    def _salvage(self) -> None:
        """Await and record the calls in flight when the loop is broken from outside."""
        self._broken_off = True
        not_sent = [future for future in list(self._in_flight) if future.cancel()]
        for work in [*self._handed_back, *(self._in_flight.pop(future) for future in not_sent)]:
            self._take_back(work, "the dispatch is broken off")
        done, _ = wait(self._in_flight)
        _log.warning("sending broken off", extra=fields(in_flight=len(done)))
        answers = self._learn_all([future for future in done if future.result() is not None])
        self._ledger.record_once(_one_for_each_entry([*self._learned, *answers]))

    def _learn_all(self, done: Sequence[Future[Answer | None]]) -> list[Change]:
        answers = {future: answer for future in done if (answer := future.result()) is not None}
        if not self._broken_off:
            found = {run for future, answer in answers.items() for run in runs_to_know(self._in_flight[future], answer)}
            known = self._ledger.known_runs(found)
            told = found.union(each.value.run_id for each in answers.values() if isinstance(each.value, RunSnapshot))
            self._known = {run_id: list(self._taken.get(run_id, ())) for run_id in told}
            for item in known:
                self._known[item.databricks_run_id].append(item)
        self._handed_back += [self._in_flight.pop(future) for future in done if future not in answers]
        changes = []
        for future, answer in answers.items():
            work = self._in_flight.pop(future)
            changes += self._learn(work, answer)
            self._undecided.discard(work.entry.entry_id)
        return changes

    def _learn(self, work: Work, answer: Answer) -> list[Change]:
        """Decide what an answer means, queue what follows, and return what the ledger should know."""
        self._sent.calls += 1
        self._sent.api_seconds += answer.seconds
        if isinstance(answer.value, MorePages):
            self._note(work, answer)
            work.more = answer.value
            self._take_step(work, work.step, 0.0)
            _log.debug("page read", extra=_about(work))
            return []
        if not isinstance(answer.error, Throttled):
            # After any other failure the reading begins anew: the workspace may have forgotten where it was.
            work.more = None
        event = event_of(work, answer, self._runs.scrub)
        lost = self._note(work, answer)
        witnessed = [self._after_witness(held, work) for held in self._refusals.note(work, answer.error)]
        if self._broken_off and runs_to_know(work, answer):
            # Whose it is cannot be asked any more: the next dispatch finds it again.
            self._on_answer(work, answer, None)
            return [Change(work.entry.entry_id, (event,)), *witnessed]
        decision = decide(work, answer, self._facts(work, answer.error), self._policy)
        _log.debug("call decided", extra=_decided(work, answer, decision))
        self._on_answer(work, answer, decision)
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
            self._throttled.add(work.call)
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
        self._ledger.write(changes, [])
        self._failure = self._failure or error

    def _conclude(self, work: Work, decision: Quarantine | Defer) -> Change:
        """Let a row leave whose refusal is recorded already."""
        outcome = outcome_of(work, decision)
        self._concluded.add(work.entry.entry_id)
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
        for found in (self._taken, self._known):
            found.setdefault(run_id, []).insert(0, taken)

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
