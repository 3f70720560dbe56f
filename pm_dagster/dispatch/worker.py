"""The loop of a dispatch: many calls in flight, one thread that decides.

Worker threads make one HTTP attempt each and know nothing; this thread paces, commits intents before the calls they
announce, records what came back, and asks ``decisions`` what is next. What came back together is written together.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace

from pm_dagster.dispatch import decisions as steps
from pm_dagster.dispatch.call_execution import Answer, Work, attempt, decide, event_of
from pm_dagster.dispatch.call_queue import CallQueue
from pm_dagster.dispatch.circuit_breaker import CircuitBreaker
from pm_dagster.dispatch.corrections import KnownRun, known_by_run, not_others, of_another_job, whose
from pm_dagster.dispatch.decisions import Decision
from pm_dagster.dispatch.ledger_entry import Entry, EntryState
from pm_dagster.dispatch.ledger_writer import LedgerWriter
from pm_dagster.dispatch.ports import Call, Change, ControlPlane, DatabricksRuns, Event, Intent, Outcome
from pm_dagster.dispatch.rate_limiter import RateLimiter
from pm_dagster.dispatch.refusal_breaker import RefusalBreaker, Verdict
from pm_dagster.dispatch.row_outcome import RowOutcome, change_for, outcome_of, refused_or_put_off
from pm_dagster.dispatch.rules import Policy, first_step
from pm_dagster.dispatch.run_state import RunSnapshot, Standing
from pm_dagster.errors import (
    AuthenticationFailed,
    ConfigurationError,
    Defect,
    ProcessManagerError,
    Refused,
    Throttled,
    WorkspaceUnavailable,
)

#: Longest sleep of the loop, so that stop requests and heartbeats are met in time.
_LONGEST_WAIT = 0.5
#: A longer Retry-After than this leaves the row for a later dispatch.
_LONGEST_THROTTLE = 60.0
_LONGEST_DEFERRAL = 3600.0
#: A row that is corrected this often within one dispatch is left for the next one.
_MOST_RESTARTS = 10
_UNANSWERED = (EntryState.CLAIMED, EntryState.SENDING)
_FINAL = (Outcome.ACCEPTED, Outcome.ADOPTED, Outcome.QUARANTINED)


@dataclass
class Sent:
    """The result of one stretch of sending: outcomes by entry id, what is prepared, what was left for later.

    ``followed`` are the new generations of rows that were corrected, claimed under way.
    """

    outcomes: dict[int, RowOutcome] = field(default_factory=dict)
    prepared: list[Work] = field(default_factory=list)
    followed: list[Entry] = field(default_factory=list)
    left: list[Entry] = field(default_factory=list)
    calls: int = 0
    api_seconds: float = 0.0

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
    """How much at once, and until when (``deadline`` on the monotonic clock of the sender)."""

    concurrency: int
    deadline: float


class Sender:
    """Drives entries to their outcome. For one stretch; not thread-safe.

    ``stop`` asks to end early: calls in flight are awaited and recorded, the rest is left.
    """

    def __init__(
        self,
        control: ControlPlane,
        runs: DatabricksRuns,
        governor: RateLimiter,
        policy: Policy,
        limits: Limits,
        verdicts: RefusalBreaker,
        *,
        stop: threading.Event,
        clock: Callable[[], float] = time.monotonic,
        on_outcome: Callable[[RowOutcome], None] = lambda _outcome: None,
    ) -> None:
        self._book = LedgerWriter(control, stop, clock)
        self._runs = runs
        self._governor = governor
        self._policy = policy
        self._limits = limits
        self._stop = stop
        self._clock = clock
        self._on_outcome = on_outcome
        self._agenda = CallQueue(governor, clock)
        self._in_flight: dict[Future[Answer], Work] = {}
        self._failure: ProcessManagerError | None = None
        self._silence = CircuitBreaker(limits.concurrency, policy.call_tries, policy.call_backoff_seconds, clock)
        self._verdicts = verdicts
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
        """Take each work to its outcome; with ``prepare_only``, only up to the point of starting something.

        Raises AuthenticationFailed, WorkspaceUnavailable, Defect or EverybodyRefused when going on is pointless, and
        ControlPlaneUnavailable when the database stays away; what was learned until then is recorded as far as the
        database allows.
        """
        for work in works:
            self._take_step(work, work.step, 0.0)
        pool = ThreadPoolExecutor(self._limits.concurrency, thread_name_prefix="databricks-call")
        try:
            self._loop(pool, prepare_only=prepare_only)
            self._settle()
        except BaseException:
            self._salvage()
            raise
        finally:
            pool.shutdown(wait=True)
        self._sent.left += [w.entry for w in self._agenda if w.entry.entry_id not in self._sent.outcomes]
        if self._failure is not None:
            raise self._failure
        return self._sent

    def _loop(self, pool: ThreadPoolExecutor, *, prepare_only: bool) -> None:
        while True:
            if prepare_only:
                self._sent.prepared += self._agenda.set_aside((Call.RUN_NOW, Call.REPAIR))
            if not self._ending() and self._verdicts.lasting:
                self._failure = self._verdicts.error
            if not self._ending():
                self._submit(pool, self._next())
            if not self._in_flight and (self._ending() or self._nothing_in_time()):
                return
            self._collect(self._pause())
            self._book.tend()

    def _ending(self) -> bool:
        return self._failure is not None or self._stop.is_set() or self._clock() >= self._limits.deadline

    def _nothing_in_time(self) -> bool:
        """Whether no work waits, or none whose call may be made before the deadline: a long Retry-After is no wait."""
        return self._agenda.delay > self._limits.deadline - self._clock()

    def _settle(self) -> None:
        """What is to become of the refusals that no later answer has decided."""
        error = self._verdicts.error
        verdicts = [self._verdicts.put_off(work) for work in self._agenda if work.refused]
        verdicts += self._verdicts.settle(blame=self._failure is None)
        self._book.record([self._conclude(verdict) for verdict in verdicts])
        self._failure = self._failure or error

    def _conclude(self, verdict: Verdict) -> Change:
        """Let a row leave whose refusal is recorded already."""
        outcome = _told(verdict[0], refused_or_put_off(verdict[0].entry, verdict[1]))
        self._finish(outcome)
        return change_for(outcome, None, None, ambiguous=False)

    def _alone(self) -> bool:
        """Whether calls go one by one, to find out about all of them."""
        return self._silence.spell or self._verdicts.suspicion

    def _delay(self) -> float:
        return max(self._silence.delay, self._verdicts.delay)

    def _room(self) -> int:
        if self._delay() > 0:
            return 0
        return (1 if self._alone() else self._limits.concurrency) - len(self._in_flight)

    def _next(self) -> list[Work]:
        room = self._room()
        alone = self._alone()
        works = self._agenda.probe(self._was_met) if alone and room > 0 else self._agenda.take(room)
        for work in works:
            work.probing = alone
        return works

    def _was_met(self, work: Work) -> bool:
        """Whether a call like this one was met by what the single calls are to find out about."""
        return work.kind in self._silence.met or (self._verdicts.suspicion and work.entry.job_id in self._verdicts.met)

    def _take_step(self, work: Work, step: Decision, delay: float) -> None:
        work.step = step
        self._agenda.add(work, delay)

    def _submit(self, pool: ThreadPoolExecutor, works: list[Work]) -> None:
        starting = [work for work in works if work.changes_workspace]
        granted = self._book.intend([_intent(work) for work in starting])
        self._begin_again([work for work in starting if work.entry.entry_id not in granted])
        for work in works:
            if work.changes_workspace:
                if work.entry.entry_id not in granted:
                    continue
                work.entry = _announced(work)
            self._in_flight[pool.submit(attempt, work, self._runs, self._clock)] = work

    def _begin_again(self, works: list[Work]) -> None:
        """Take up, as they are now, the rows that were corrected since they were claimed; the others are not ours."""
        standing = {entry.entry_id: entry for entry in self._book.resume([work.entry.entry_id for work in works])}
        for work in works:
            entry = standing.get(work.entry.entry_id)
            if entry is None or entry.state not in _UNANSWERED:
                reason = "the row left WAITING, or another dispatch took it, before anything was sent"
                self._finish(RowOutcome(work.entry, Outcome.WITHDRAWN, reason))
            elif work.restarts >= _MOST_RESTARTS:
                self._sent.left.append(entry)
            else:
                again = Work(entry, first_step(entry), restarts=work.restarts + 1)
                self._take_step(again, again.step, 0.0)

    def _pause(self) -> float:
        if self._ending() or self._room() <= 0:
            return min(_LONGEST_WAIT, self._delay() or _LONGEST_WAIT)
        return min(_LONGEST_WAIT, self._agenda.delay)

    def _collect(self, pause: float) -> None:
        if not self._in_flight:
            self._stop.wait(pause)
            return
        done, _ = wait(self._in_flight, timeout=pause, return_when=FIRST_COMPLETED)
        refused = self._book.record(self._learn_all(done))
        found, self._found = self._found, {}
        for entry_id, (work, outcome) in found.items():
            if entry_id in refused:
                # The ledger knows whose it is by now, so the search looks on.
                self._taken = [item for item in self._taken if item.entry_id != entry_id]
                self._take_step(work, work.step, 0.0)
            else:
                self._leave(outcome)

    def _salvage(self) -> None:
        """Await and record the calls in flight when the loop is broken from outside."""
        done, _ = wait(self._in_flight)
        self._broken_off = True
        self._book.salvage(self._learn_all(done))

    def _learn_all(self, done: set[Future[Answer]]) -> list[Change]:
        if not self._broken_off:
            found = {run_id for future in done for run_id in _may_take(self._in_flight[future], future.result())}
            self._known = known_by_run([*self._taken, *self._book.known_runs(found)])
        changes = [c for future in done for c in self._learn(self._in_flight.pop(future), future.result())]
        return _one_for_each_entry(changes)

    def _learn(self, work: Work, answer: Answer) -> list[Change]:
        """Decide what an answer means, queue what follows, and return what the ledger should know."""
        self._sent.calls += 1
        self._sent.api_seconds += answer.seconds
        event = event_of(work, answer, self._runs.scrub)
        ambiguous = self._note_error(work, answer.error)
        certain = [self._conclude(verdict) for verdict in self._verdicts.hear(work, answer.error)]
        if self._broken_off and _may_take(work, answer):
            # Whose it is cannot be asked any more: the next dispatch finds it again.
            return [Change(work.entry.entry_id, (event,)), *certain]
        answer = self._sorted_out(work, answer)
        decision = self._temper(work, answer.error, decide(work, answer, self._policy))
        return [self._apply(work, answer, decision, event, ambiguous=ambiguous), *certain]

    def _apply(self, work: Work, answer: Answer, decision: Decision, event: Event, *, ambiguous: bool) -> Change:
        if isinstance(decision, steps.Quarantine):
            refusal = answer.error if isinstance(answer.error, Refused) else work.refused.get(Call.RUN_NOW)
            verdict = refusal and self._verdicts.hold(work, decision, refusal)
            if refusal and not verdict:
                state = None if work.entry.ambiguous else EntryState.CLAIMED
                return Change(work.entry.entry_id, (event,), state, reason=decision.reason, ambiguous=ambiguous)
            decision = verdict[1] if verdict else decision
        outcome = outcome_of(work.entry, decision)
        if outcome is None:
            state = self._go_on(work, decision, answer.error)
            return Change(work.entry.entry_id, (event,), state=state, ambiguous=ambiguous)
        outcome = _told(work, outcome)
        change = change_for(outcome, event, self._link(work, outcome), ambiguous=ambiguous)
        if work.call is Call.LIST_RUNS and outcome.run_id is not None:
            self._note_run(outcome, outcome.run_id)
            self._found[outcome.entry.entry_id] = work, outcome
            return replace(change, found=True)
        self._finish(outcome)
        return change

    def _sorted_out(self, work: Work, answer: Answer) -> Answer:
        """The answer as far as it is about this row: a run that is another row's work is not taken for its own."""
        table = self._policy.control_table
        if isinstance(answer.value, RunSnapshot):
            work.seen = answer.value
            work.known = whose(work.entry, table, self._known.get(answer.value.run_id, []))
        if isinstance(answer.value, list):
            known = [item for run_id in answer.value for item in self._known.get(run_id, [])]
            return replace(answer, value=not_others(work.entry, table, answer.value, known))
        return answer

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

    def _note_error(self, work: Work, error: ProcessManagerError | None) -> bool:
        """Keep the counts that an error moves; true when a call may have taken effect unseen."""
        self._silence.note(error, work.kind)
        if isinstance(error, WorkspaceUnavailable):
            work.unanswered[work.call] += 1
        elif work.call is Call.GET_RUN:
            work.unanswered[work.call] = 0
        if isinstance(error, Refused):
            work.refusals[work.call] += 1
            work.refused[work.call] = error
        unseen = isinstance(error, (WorkspaceUnavailable, Defect)) and error.maybe_applied
        lost = unseen and work.changes_workspace
        if lost:
            work.entry = replace(work.entry, ambiguous=True)
        return lost

    def _temper(self, work: Work, error: ProcessManagerError | None, decision: Decision) -> Decision:
        """Bend a decision to what this dispatch has seen: throttling, and a workspace that answers nobody."""
        if isinstance(error, Throttled):
            pause = self._governor.throttle(work.call, error.retry_after)
            if pause > min(_LONGEST_THROTTLE, self._limits.deadline - self._clock()):
                return steps.Defer(f"{work.call.value}: {error}", min(pause, _LONGEST_DEFERRAL))
        gives_up = isinstance(decision, steps.Defer)
        if isinstance(error, WorkspaceUnavailable) and self._silence.lasting(row_gives_up=gives_up):
            return steps.Stop(error)
        return decision

    def _go_on(self, work: Work, decision: Decision, error: ProcessManagerError | None) -> EntryState | None:
        """Queue what follows, or stop; returns the state to which an entry goes back for which nothing was started."""
        if isinstance(decision, steps.Stop):
            self._failure = self._failure or decision.error
            self._sent.left.append(work.entry)
            return EntryState.CLAIMED if _not_applied(decision.error) and not work.entry.ambiguous else None
        if isinstance(decision, steps.Again):
            self._take_step(work, work.step, decision.delay)
            return EntryState.CLAIMED if isinstance(error, Refused) and not work.entry.ambiguous else None
        self._take_step(work, decision, decision.delay if isinstance(decision, steps.LookUp) else 0.0)
        return None

    def _finish(self, outcome: RowOutcome) -> None:
        if outcome.run_id is not None:
            self._note_run(outcome, outcome.run_id)
        self._leave(outcome)

    def _leave(self, outcome: RowOutcome) -> None:
        self._sent.outcomes[outcome.entry.entry_id] = outcome
        self._on_outcome(outcome)

    def _note_run(self, outcome: RowOutcome, run_id: int) -> None:
        """From now on the run is this row's, also for answers that came together with this one."""
        entry = outcome.entry
        number, more = (entry.run_id, entry.generation), (outcome.repair_id, outcome.superseded)
        taken = KnownRun(run_id, entry.entry_id, self._policy.control_table, *number, *more)
        self._taken.insert(0, taken)
        self._known.setdefault(run_id, []).insert(0, taken)


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


def _may_take(work: Work, answer: Answer) -> list[int]:
    """The runs that an answer may lead to taking for the row's own: whose they are has to be known."""
    value = answer.value
    if isinstance(value, list):
        return value
    if not isinstance(value, RunSnapshot):
        return []
    alive = value.standing in (Standing.ACTIVE, Standing.SUCCEEDED)
    return [value.run_id] if alive or work.entry.state is EntryState.SENDING else []


def _told(work: Work, outcome: RowOutcome) -> RowOutcome:
    """The outcome with what the row's owner has to know beside it."""
    if outcome.outcome not in _FINAL:
        return outcome
    seen = work.seen if work.seen is not None and work.seen.run_id == outcome.run_id else None
    more = [of_another_job(work.entry, seen.job_id) if seen else "", work.entry.note]
    return replace(outcome, reason="; ".join(text for text in (outcome.reason, *more) if text))


def _intent(work: Work) -> Intent:
    if isinstance(work.step, steps.RepairRun):
        return Intent(work.entry, latest_repair_id=work.step.latest_repair_id)
    return Intent(work.entry, fresh_run=not work.entry.starts_new_run)


def _not_applied(error: ProcessManagerError) -> bool:
    return isinstance(error, (AuthenticationFailed, ConfigurationError)) or (
        isinstance(error, (WorkspaceUnavailable, Defect)) and not error.maybe_applied
    )


def _announced(work: Work) -> Entry:
    if isinstance(work.step, steps.RepairRun):
        return replace(work.entry, state=EntryState.SENDING, sent_repair_id=work.step.latest_repair_id)
    return replace(
        work.entry, state=EntryState.SENDING, fresh_run=not work.entry.starts_new_run or work.entry.fresh_run
    )
