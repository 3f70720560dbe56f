"""Circuit breakers: when the workspace does not answer, and when it refuses all calls.

Both are closed at first: calls go as the rate limiter lets them. One that opens lets no call through for a pause that
doubles; half-open, it lets single calls through, rather of jobs that were not in trouble yet. A good answer closes it.
Both live as long as the dispatch, also between the ops of Dagster, and belong to its one deciding thread. They say what
was seen; what follows for a row is in ``rules``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from enum import StrEnum

from pm_dagster.dispatch.model import Hold, Work
from pm_dagster.dispatch.rules import (
    SUSPICIOUS_JOBS,
    SUSPICIOUS_ROWS,
    Held,
    Outage,
    Witnesses,
    is_about_starting,
    names_the_row,
)
from pm_dagster.errors import AllStartsRefused, ForeignAnswer, ProcessManagerError, Refused, WorkspaceUnavailable
from pm_dagster.logs import fields
from pm_dagster.text import clause, counted

_log = logging.getLogger(__name__)

_SERVER_ERROR = 500
#: So many single calls that are refused while the breaker for refusals is open are enough to stop.
_MOST_REFUSED_PROBES = 3


class BreakerState(StrEnum):
    """What a breaker lets through."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class CircuitBreaker:
    """Counts unanswered calls in a row.

    After ``concurrency`` of them, but more than one row alone can cause, it opens, with pauses that double from
    ``backoff`` seconds on. After ``tries`` single calls without an answer the outage is certain. Any answer closes it.
    ``affected`` are the kinds of calls that had no answer: single calls are rather of others, for it may be one job
    alone that has none. ``clock`` is monotonic seconds.
    """

    def __init__(self, concurrency: int, tries: int, backoff: float, clock: Callable[[], float]) -> None:
        # More than a single row can cause.
        self._threshold = max(concurrency, tries + 1)
        self._tries = tries
        self._backoff = backoff
        self._clock = clock
        self._unanswered = 0
        self._probes = 0
        self._open_until = 0.0
        self._ever_answered = False
        self.affected: set[object] = set()

    def begin(self) -> None:
        """Begin a stretch of sending: an outage is remembered, and one call may find out at once whether it is over.

        So an op that Dagster retries sends one call, not as many as fit in flight, and has its own tries.
        """
        if self._probes:
            self._probes = 1
            self._open_until = self._clock()
            _log.info("circuit breaker half-open", extra=fields(unanswered=self._unanswered))

    def note(self, error: ProcessManagerError | None, kind: object = None) -> None:
        """Take in how a call of a kind ended; None for a good answer."""
        if not _is_unanswered(error):
            if self._probes:
                _log.info("circuit breaker closed", extra=fields(unanswered=self._unanswered))
            self._ever_answered = True
            self._unanswered = self._probes = 0
            self.affected.clear()
            return
        self.affected.add(kind)
        self._unanswered += 1
        now = self._clock()
        if self._unanswered >= self._threshold and now >= self._open_until:
            pause = self._backoff * 2**self._probes
            self._open_until = now + pause
            self._probes += 1
            _log.warning(
                "circuit breaker opened",
                extra=fields(unanswered=self._unanswered, pause=pause, error=type(error).__name__),
            )

    @property
    def state(self) -> BreakerState:
        """Closed; open for a pause; or half-open, for one call at a time."""
        if not self._probes:
            return BreakerState.CLOSED
        return BreakerState.OPEN if self.delay > 0 else BreakerState.HALF_OPEN

    @property
    def delay(self) -> float:
        """Seconds until the next call may start; 0 when it may start now."""
        return max(0.0, self._open_until - self._clock()) if self._probes else 0.0

    @property
    def outage(self) -> Outage:
        """What is known of the workspace as a whole."""
        if self._probes > self._tries:
            return Outage.CERTAIN
        return Outage.SUSPECTED if self._probes or not self._ever_answered else Outage.NONE


def _is_unanswered(error: ProcessManagerError | None) -> bool:
    """A 500 is an answer about one call: a job that the workspace cannot start must not stop the other jobs."""
    return isinstance(error, WorkspaceUnavailable) and error.status != _SERVER_ERROR


class _Refusal:
    def __init__(self, job_id: int, error: ProcessManagerError, *, starting: bool) -> None:
        self.job_id = job_id
        self.error = error
        self.starting = starting


class RefusalBreaker:
    """Counts the rows that were refused since a call went well, and holds refusals until one does.

    Open while it may be that the workspace refuses all calls, with pauses that double from ``backoff`` seconds on.
    ``clock`` is monotonic seconds.
    """

    def __init__(self, backoff: float, clock: Callable[[], float]) -> None:
        self._backoff = backoff
        self._clock = clock
        self._held: dict[int, Held] = {}
        self._streak: dict[int, _Refusal] = {}
        self._started: set[int] = set()
        self._read: set[int] = set()
        self._proven: set[tuple[int, str]] = set()
        self._probes = 0
        self._open_until = 0.0

    def note(self, work: Work, error: ProcessManagerError | None) -> list[Held]:
        """Take in how a call ended, None for well; returns the held refusals that this good answer decides."""
        if error is None:
            return self._note_success(work)
        if isinstance(error, ForeignAnswer) or (isinstance(error, Refused) and not names_the_row(error)):
            self._count(work, error)
        return []

    def hold(self, work: Work, hold: Hold) -> None:
        """Hold a refusal back."""
        self._count(work, hold.refusal)
        self._held[work.entry.entry_id] = Held(work, hold)

    def proves(self, work: Work, refusal: Refused | None) -> bool:
        """Whether the same refusal of the same job was found to be the row's fault."""
        return refusal is not None and (work.entry.job_id, _shape(refusal)) in self._proven

    def prove(self, held: Held) -> None:
        """Remember that such a refusal is the row's fault."""
        self._proven.add((held.job_id, _shape(held.hold.refusal)))

    def discard(self, work: Work) -> None:
        """Forget the refusals of a row that was refused for good: they say nothing about the workspace."""
        self._streak.pop(work.entry.entry_id, None)

    def release(self) -> list[Held]:
        """Give out all that is held, at the end of a stretch of sending."""
        held = list(self._held.values())
        self._held.clear()
        return held

    @property
    def state(self) -> BreakerState:
        """Closed; open for a pause; or half-open, for one call at a time."""
        if not self._suspects():
            return BreakerState.CLOSED
        return BreakerState.OPEN if self.delay > 0 else BreakerState.HALF_OPEN

    @property
    def affected(self) -> set[int]:
        """The jobs that were refused since a call went well; single calls are rather of others."""
        return {refusal.job_id for refusal in self._streak.values()}

    @property
    def delay(self) -> float:
        """Seconds until the next single call; 0 when it may start now."""
        return max(0.0, self._open_until - self._clock()) if self._suspects() else 0.0

    @property
    def exhausted(self) -> bool:
        """Whether enough single calls were refused to stop."""
        return self._suspects() and self._probes > _MOST_REFUSED_PROBES

    @property
    def witnesses(self) -> Witnesses:
        """What the calls of other rows say about the refusals that are held."""
        all_refused, affected = self._all_refused, frozenset(self.affected)
        return Witnesses(all_refused, frozenset(self._started), frozenset(self._read), len(self._streak), affected)

    @property
    def error(self) -> ProcessManagerError | None:
        """What to stop with when all calls were refused, None when that is not so."""
        if not self._all_refused:
            return None
        newest = next(reversed(self._streak.values())).error
        if isinstance(newest, ForeignAnswer):
            return newest
        rows, jobs = counted(len(self._streak), "row"), counted(len(self.affected), "job")
        return AllStartsRefused(
            f"the workspace refuses all calls: those of {rows} of {jobs} since it last accepted one; the last answer:"
            f" {clause(str(newest))}. No row is blamed: they wait and are tried again. Check what our user may do,"
            " whether DATABRICKS_HOST is the right workspace, and whether that workspace is in maintenance"
        )

    @property
    def _all_refused(self) -> bool:
        if self._suspects():
            return True
        return not self._started and len(self.affected) >= SUSPICIOUS_JOBS

    def _suspects(self) -> bool:
        """Whether all calls may be refused."""
        refusals = self._streak.values()
        if len(refusals) < SUSPICIOUS_ROWS:
            return False
        jobs = self.affected
        if all(names_the_row(refusal.error) for refusal in refusals):
            return len(jobs) >= SUSPICIOUS_JOBS
        witnesses = self._started if any(refusal.starting for refusal in refusals) else self._started | self._read
        return len(jobs) > 1 or not witnesses - jobs or bool(witnesses & jobs)

    def _count(self, work: Work, error: ProcessManagerError) -> None:
        if isinstance(error, Refused) and self.proves(work, error):
            return
        before = self._suspects()
        self._streak.pop(work.entry.entry_id, None)
        starting = is_about_starting(work, error)
        self._streak[work.entry.entry_id] = _Refusal(work.entry.job_id, error, starting=starting)
        # What was in flight when the breaker opened is no single call.
        if self._suspects() and (work.probing or not before):
            pause = self._backoff * 2**self._probes
            self._open_until = self._clock() + pause
            self._probes += 1
            _log.warning(
                "refusal breaker opened",
                extra=fields(rows=len(self._streak), jobs=len(self.affected), pause=pause),
            )

    def _note_success(self, work: Work) -> list[Held]:
        job_id, starting = work.entry.job_id, work.changes_workspace
        before = self._suspects()
        (self._started if starting else self._read).add(job_id)
        self._streak = {} if starting else {n: each for n, each in self._streak.items() if each.starting}
        if not self._suspects():
            self._probes = 0
            if before:
                _log.info("refusal breaker closed", extra=fields(entry=work.entry.entry_id, call=work.call.value))
        witnessed = [held for held in self._held.values() if starting or not held.hold.starting]
        for held in witnessed:
            del self._held[held.work.entry.entry_id]
        return witnessed


def _shape(error: ProcessManagerError) -> str:
    """The words without their numbers: what is the same again."""
    return re.sub(r"\d+", "#", str(error))
