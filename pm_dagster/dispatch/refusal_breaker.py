"""A circuit breaker for refusals: no row is refused for good on the word of a workspace that refuses everybody.

Put here: when a refusal is held against its row, when it is not, and when going on is pointless. Keep out: making calls
and writing (``sending``), what one refusal means (``decisions``) and a workspace that does not answer (``silence``).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from pm_dagster.dispatch.answers import Kind
from pm_dagster.dispatch.call_execution import Work
from pm_dagster.dispatch.decisions import Defer, Quarantine
from pm_dagster.dispatch.ports import Call
from pm_dagster.errors import EverybodyRefused, ForeignAnswer, ProcessManagerError, Refused
from pm_dagster.text import clause, counted

#: So many rows refused in a row make one ask whether it is the rows.
_SUSPICIOUS_ROWS = 5
#: ... and so many single calls refused after that are enough.
_PROBES = 3
#: A refusal that needs a good answer nearby is near to it when no more rows were refused since.
_NEAR_ROWS = 2
#: A workspace in which so many jobs do not exist, and none does, is another workspace.
_SUSPICIOUS_JOBS = 3
_LONGEST_PAUSE = 3600.0
_DOUBLINGS = 16
_JOB_IS_ABSENT = re.compile(r"\bjob\b.*\b(?:does not exist|doesn[\u2019']t exist|not found)", re.IGNORECASE)

BY_NAME = "the Jobs API itself says so about this job, this run or these parameters"
BY_LATER_SUCCESS = "the Jobs API says so, and it took another row's call afterwards"
BY_EARLIER_SUCCESS = "the Jobs API says so, and it had just taken another row's call"
AS_PROVEN = "the Jobs API says to this job what it had said to another row of it, which was found to be so"
_CONTRADICTED = "another row of the same job was taken by the workspace afterwards"
_NO_WITNESS = "it names neither job, run nor parameters or is about rights, and no call of another row went well nearby"
_EVERYBODY = "the workspace refused everybody at the time"


@dataclass(frozen=True)
class Held:
    """A refusal that would make its row FAILED, until it is found out whether it is the row's fault."""

    work: Work
    decision: Quarantine
    refusal: Refused
    starting: bool

    @property
    def job_id(self) -> int:
        """The row's job."""
        return self.work.entry.job_id

    @property
    def about_the_job(self) -> bool:
        """Whether it would be true for every row of the job."""
        return self.refusal.kind is Kind.FORBIDDEN or bool(_JOB_IS_ABSENT.search(str(self.refusal)))

    @property
    def shape(self) -> tuple[int, str]:
        """The job and the words without their numbers: what is the same again."""
        return self.job_id, _shape(self.refusal)


Verdict = tuple[Work, Quarantine | Defer]


@dataclass(frozen=True)
class _Refusal:
    job_id: int
    error: ProcessManagerError
    starting: bool

    @property
    def soft(self) -> bool:
        """Whether it may be about anything but the row."""
        return not isinstance(self.error, Refused) or self.error.kind not in (Kind.NAMED, Kind.GONE)


class RefusalBreaker:
    """The refusals of one dispatch, all its stretches of sending. For the one deciding thread.

    ``backoff`` is the first pause, in seconds, between the single calls while there is suspicion; it doubles.
    ``settle`` is the first pause of a row that is not blamed. ``clock`` is monotonic seconds.
    """

    def __init__(self, backoff: float, settle: float, clock: Callable[[], float]) -> None:
        self._backoff = backoff
        self._settle = settle
        self._clock = clock
        self._held: dict[int, Held] = {}
        self._streak: dict[int, _Refusal] = {}
        self._started: set[int] = set()
        self._read: set[int] = set()
        self._proven: set[tuple[int, str]] = set()
        self._probes = 0
        self._quiet_until = 0.0

    def hear(self, work: Work, error: ProcessManagerError | None) -> list[Verdict]:
        """Hear how a call ended, None for well; returns the verdicts that are certain by that."""
        if error is None:
            return self._hear_success(work)
        if isinstance(error, ForeignAnswer) or (isinstance(error, Refused) and _soft(error.kind)):
            self._count(work, error)
        return []

    def hold(self, work: Work, decision: Quarantine, refusal: Refused) -> Verdict | None:
        """Hold a refusal back; returns its verdict if that is certain already."""
        held = Held(work, decision, refusal, _is_about_starting(work, refusal))
        if held.shape in self._proven:
            self._streak.pop(work.entry.entry_id, None)
            return _final(held, AS_PROVEN)
        self._count(work, refusal)
        self._held[work.entry.entry_id] = held
        return None

    @property
    def suspicion(self) -> bool:
        """True while calls go one by one, for it may be that everybody is refused."""
        refusals = self._streak.values()
        if len(refusals) < _SUSPICIOUS_ROWS:
            return False
        jobs = self.met
        if not any(refusal.soft for refusal in refusals):
            return len(jobs) >= _SUSPICIOUS_JOBS
        witnesses = self._started if any(refusal.starting for refusal in refusals) else self._started | self._read
        return len(jobs) > 1 or not witnesses - jobs or bool(witnesses & jobs)

    @property
    def met(self) -> set[int]:
        """The jobs that were refused since a call went well; single calls should be of others."""
        return {refusal.job_id for refusal in self._streak.values()}

    @property
    def delay(self) -> float:
        """Seconds until the next single call; 0 when it may start now."""
        return max(0.0, self._quiet_until - self._clock()) if self.suspicion else 0.0

    @property
    def lasting(self) -> bool:
        """Whether to go on is pointless."""
        return self.suspicion and self._probes > _PROBES

    def put_off(self, work: Work) -> Verdict:
        """The verdict on a row whose last call was refused and that is not to be called again now."""
        newest = next(reversed(work.refused.values()))
        why = _EVERYBODY if self._everybody else _NO_WITNESS
        reason = f"{work.call.value} was refused: {newest}; not held against the row: {why}"
        return work, Defer(reason, self._settle)

    def settle(self, *, blame: bool) -> list[Verdict]:
        """The verdicts at the end of a stretch; with ``blame`` false, nothing is held against any row."""
        blame = blame and not self._everybody
        settled = [self._verdict(held, blame=blame) for held in self._held.values()]
        self._held.clear()
        return settled

    @property
    def error(self) -> ProcessManagerError | None:
        """What to stop with when everybody was refused, None when that is not so."""
        if not self._everybody:
            return None
        newest = next(reversed(self._streak.values())).error
        if isinstance(newest, ForeignAnswer):
            return newest
        return EverybodyRefused(
            f"the workspace refused the calls of {counted(len(self._streak), 'row')} of {counted(len(self.met), 'job')}"
            f" in a row and took none since; the last answer: {clause(str(newest))}. No row is blamed for that: they"
            " wait and are tried again. Check what our user may do, whether DATABRICKS_HOST is the right workspace, and"
            " whether that is in maintenance"
        )

    @property
    def _everybody(self) -> bool:
        if self.suspicion:
            return True
        return not self._started and len(self.met) >= _SUSPICIOUS_JOBS

    def _count(self, work: Work, error: ProcessManagerError) -> None:
        if isinstance(error, Refused) and (work.entry.job_id, _shape(error)) in self._proven:
            return
        before = self.suspicion
        self._streak.pop(work.entry.entry_id, None)
        self._streak[work.entry.entry_id] = _Refusal(work.entry.job_id, error, _is_about_starting(work, error))
        # What was in flight when suspicion arose is no probe.
        if self.suspicion and (work.probing or not before):
            self._quiet_until = self._clock() + self._backoff * 2**self._probes
            self._probes += 1

    def _hear_success(self, work: Work) -> list[Verdict]:
        job_id, starting = work.entry.job_id, work.changes_workspace
        (self._started if starting else self._read).add(job_id)
        self._streak = {} if starting else {n: each for n, each in self._streak.items() if each.starting}
        if not self.suspicion:
            self._probes = 0
        witnessed = [held for held in self._held.values() if starting or not held.starting]
        for held in witnessed:
            del self._held[held.work.entry.entry_id]
        return [self._witnessed(held, job_id) for held in witnessed]

    def _witnessed(self, held: Held, job_id: int) -> Verdict:
        if held.about_the_job and held.job_id == job_id:
            return self._unblamed(held, _CONTRADICTED)
        self._proven.add(held.shape)
        return _final(held, BY_LATER_SUCCESS)

    def _verdict(self, held: Held, *, blame: bool) -> Verdict:
        if not blame:
            return self._put_off(held)
        if not _soft(held.refusal.kind):
            near = bool(self._started) and len(self._streak) < _SUSPICIOUS_ROWS
            return _final(held, BY_NAME) if near or len(self.met) < _SUSPICIOUS_JOBS else self._put_off(held)
        witnesses = self._started if held.starting else self._started | self._read
        if held.about_the_job:
            witnesses = set() if held.job_id in witnesses else witnesses
        near = len(self._streak) <= _NEAR_ROWS or (len(self.met) == 1 and not witnesses & self.met)
        return _final(held, BY_EARLIER_SUCCESS) if witnesses and near else self._unblamed(held, _NO_WITNESS)

    def _unblamed(self, held: Held, why: str) -> Verdict:
        """Back with a growing pause: it may be the row, and nobody can tell."""
        entry = held.work.entry
        pause = min(self._settle * 2 ** min(entry.attempts, _DOUBLINGS), _LONGEST_PAUSE)
        return held.work, Defer(f"{held.decision.reason}; not held against the row: {why}", pause, counts=True)

    def _put_off(self, held: Held) -> Verdict:
        reason = f"{held.decision.reason}; not held against the row: {_EVERYBODY}"
        return held.work, Defer(reason, self._settle)


def _is_about_starting(work: Work, error: ProcessManagerError) -> bool:
    """Whether the answer is one to a call that starts something, also where a search came after it."""
    return work.changes_workspace or any(error is work.refused.get(call) for call in (Call.RUN_NOW, Call.REPAIR))


def _soft(kind: Kind) -> bool:
    return kind not in (Kind.NAMED, Kind.GONE)


def _shape(error: ProcessManagerError) -> str:
    return re.sub(r"\d+", "#", str(error))


def _final(held: Held, rule: str) -> Verdict:
    rules = "; ".join(each for each in (held.decision.rule, rule) if each)
    return held.work, Quarantine(held.decision.reason, rules)
