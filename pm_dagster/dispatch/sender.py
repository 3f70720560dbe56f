"""Both branches at once where their steps are apart: one thread sends, and Dagster's ops feed it and await their rows.

    trigger_new_jobs         start()  --+
    fetch_latest_repair_ids  look_up() -+-- rows of both branches --> one thread, with one ``Worker``
    repair_job_runs          repair() --+

Dagster's in-process executor runs ops one after the other. The first of these ops that runs begins with all rows that
its process has just claimed (``Sender.begin``). So the other branch is sent meanwhile, and each repair follows its
look-up at once; the ops that come later find most of their answers there. A step of which this process knows no rows,
as with an executor of one process a step or in a re-execution, is done alone from the ledger, as ``service`` has it.

The control plane is not thread-safe. While the thread works it does all that touches the database; every other thread
awaits its rows, or its end (``rest``).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

from pm_dagster.dispatch.in_doubt import TO_SEND
from pm_dagster.dispatch.model import Answer, Decision, Entry, RepairRun, RowOutcome, StartRun, Step, Stop, Work
from pm_dagster.dispatch.service import MOST_GENERATIONS, Dispatch, RepairTarget, target_of, targeted
from pm_dagster.dispatch.waiting_job import Branch
from pm_dagster.dispatch.worker import Sent
from pm_dagster.errors import AllStartsRefused
from pm_dagster.logs import fields

_log = logging.getLogger(__name__)


class Stage(StrEnum):
    """The step that a row is at."""

    START = "start"
    LOOK_UP = "look up"
    REPAIR = "repair"


#: The stages of each branch: an error ends the sending of its whole branch.
_BRANCHES = ((Stage.START,), (Stage.LOOK_UP, Stage.REPAIR))


@dataclass
class Calls:
    """Calls to the Jobs API.

    Attributes:
        number: How many.
        api_seconds: Their duration, summed.
        first: When the first one began, in seconds since the epoch; None without a call.
        last: When the last one was answered.
    """

    number: int = 0
    api_seconds: float = 0.0
    first: float | None = None
    last: float | None = None

    def add(self, other: Calls) -> None:
        """Take in further calls."""
        self.number += other.number
        self.api_seconds += other.api_seconds
        if other.first is not None and other.last is not None:
            self.first = other.first if self.first is None else min(self.first, other.first)
            self.last = other.last if self.last is None else max(self.last, other.last)


@dataclass
class Part:
    """What came of the rows of one step.

    Attributes:
        sent: Outcomes, calls, and rows that are left, of these rows only.
        calls: The calls of the step, with the times of the first and the last.
        targets: Rows whose run was looked up and that need a call; of ``look_up`` only.
        at_once: Whether the other branch was sent at the same time.
    """

    sent: Sent
    calls: Calls
    targets: list[RepairTarget] = field(default_factory=list)
    at_once: bool = False


class _Status(StrEnum):
    OPEN = "open"
    SETTLED = "settled"
    #: The sending ended before its outcome was known.
    FAILED = "failed"


@dataclass(eq=False)
class _Row:
    entry: Entry
    began_at: Stage
    #: Whether it came after the beginning: it is nobody's input, so the step that sends it has to name it.
    joined: bool = False
    corrected: int = 0
    stage: Stage = Stage.START
    status: _Status = _Status.SETTLED
    target: RepairTarget | None = None
    outcome: RowOutcome | None = None
    #: The number of its outcome, among all that were told.
    told: int = 0
    left: Entry | None = None
    calls: dict[Stage, Calls] = field(default_factory=lambda: {stage: Calls() for stage in Stage})


@dataclass(frozen=True)
class _Fed:
    """Rows to come: what gives them, and the ids of those among them that are known already."""

    claim: Callable[[], Sequence[Entry]]
    entry_ids: frozenset[int] = frozenset()


class Sender:
    """Sends rows of both branches in one thread, for as long as there are any. All methods may be called at any time.

    An error that ends the sending of a branch is raised once, by the step whose row or whose waiting it concerns; the
    other branch goes on. The step may be called again: it feeds its rows anew, from the ledger, and repeats no call
    whose answer is known. The thread is no daemon. It ends early when ``end`` is called, at the deadline of the
    dispatch, or when the thread that made this object has ended: then calls in flight are awaited and recorded, and the
    rest is left.

    For rows that arrive while a dispatch lingers: ``feed`` what claims them. They join their branch, whoever awaits
    that branch awaits them too, and its ``Sent`` has them among ``followed`` and ``outcomes``. So a lingering step
    feeds until its time is over, and ``start``, ``look_up`` and ``repair`` say afterwards what came of all.
    """

    def __init__(self, dispatch: Dispatch) -> None:
        self._dispatch = dispatch
        self._owner = threading.current_thread()
        self._changed = threading.Condition()
        # All of this under ``_changed``.
        self._thread: threading.Thread | None = None
        self._rows: dict[int, _Row] = {}
        self._open: Counter[Stage] = Counter()
        self._fed: list[_Fed] = []
        self._joining = False
        self._errors: dict[Stage, BaseException] = {}
        self._awaited: Stage | None = None
        #: The first decision to stop in this stretch: its error, and the stage of its row.
        self._stopped: tuple[BaseException, Stage] | None = None
        #: Rows that were corrected, to be claimed anew once that is recorded.
        self._corrected: list[_Row] = []
        #: How many outcomes were told, were told a round ago, and are recorded for certain; and how many of them have
        #: to be recorded before somebody who awaits may go on.
        self._told = self._told_before = self._recorded = self._needed = 0

    # ---- what the steps call

    def begin(self) -> None:
        """Begin with all rows of this process' newest claim that it has not touched since, both branches at once."""
        with self._changed:
            entries = [] if self._rows else self._dispatch.begins_with
            for entry in entries:
                self._rows[entry.entry_id] = row = _row_of(entry)
                self._set(row, _Status.OPEN)
        if entries:
            new = sum(entry.branch is Branch.NEW for entry in entries)
            _log.info("sending begun", extra=fields(new=new, repair=len(entries) - new))
            self._feed(_Fed(lambda: entries, frozenset(self._rows)))

    def feed(self, claim: Callable[[], Sequence[Entry]]) -> None:
        """Let further rows join.

        Args:
            claim: Gives them, as claimed. It is called in the sending thread, where it may use the control plane.
        """
        self._feed(_Fed(claim))

    def start(self, entry_ids: Collection[int]) -> Part:
        """Step: start the new runs that are not answered yet, and await them. Raises as ``Dispatch.send``."""
        if not self._knows(entry_ids, (Stage.START,)):
            return _told(Stage.START, self._alone(lambda: ([], self._dispatch.send(self._dispatch.take_up(entry_ids)))))
        self._await(Stage.START)
        return _told(Stage.START, self._part(Stage.START))

    def look_up(self, entry_ids: Collection[int]) -> Part:
        """Step: look up the runs of repair entries, and await that. Raises as ``Dispatch.look_up_repairs``."""

        def alone(ids: Collection[int]) -> Part:
            return self._alone(lambda: self._dispatch.look_up_repairs(self._dispatch.take_up(ids)))

        if not self._knows(entry_ids, (Stage.LOOK_UP, Stage.REPAIR)):
            return _told(Stage.LOOK_UP, alone(entry_ids))
        if Stage.REPAIR not in self._errors:
            self._await(Stage.LOOK_UP)
        part = self._part(Stage.LOOK_UP)
        if failed := self._failed(Stage.LOOK_UP):
            # Repairing failed and stopped the look-ups, too. That is for the next step to say.
            further = alone(failed)
            part.sent.add(further.sent)
            part.targets += further.targets
            part.calls.add(further.calls)
        return _told(Stage.LOOK_UP, part)

    def repair(self, targets: Sequence[RepairTarget]) -> Part:
        """Step: make the repairs that are not answered yet, and await them. Raises as ``Dispatch.repair``."""
        known = self._knows([target.entry_id for target in targets], (Stage.REPAIR,))
        if known or Stage.REPAIR in self._errors:
            self._await(Stage.REPAIR)
        part = self._part(Stage.REPAIR)
        if not known:
            further = self._alone(lambda: ([], self._dispatch.repair(targets)))
            part.sent.add(further.sent)
            part.calls.add(further.calls)
        return _told(Stage.REPAIR, part)

    def rest(self) -> None:
        """Wait until the thread has ended, because nothing is left to send. Then others may use the control plane."""
        self._guarded(self._join)

    def end(self) -> None:
        """End early; returns when the thread has ended. Harmless where there is none."""
        if self._thread is not None:
            self._dispatch.stop()
            _log.info("sending is to end", extra=fields(open=self._open.total()))
        self._join()

    def stage_of(self, entry_id: int) -> Stage | None:
        """The stage of a row; None where it is none of this sender's."""
        row = self._rows.get(entry_id)
        return row.stage if row else None

    # ---- awaiting

    def _knows(self, entry_ids: Collection[int], stages: Collection[Stage]) -> bool:
        with self._changed:
            rows = [self._rows.get(entry_id) for entry_id in entry_ids]
            return bool(self._rows) and all(row is not None and row.stage in stages for row in rows)

    def _await(self, stage: Stage) -> None:
        """Wait for all rows of a stage, and of those before it; begin again with those that failed."""
        stages = (Stage.LOOK_UP, Stage.REPAIR) if stage is Stage.REPAIR else (stage,)
        if not any(each in self._errors for each in stages):
            self._feed_again([entry_id for each in stages for entry_id in self._failed(each)])
        self._guarded(lambda: self._wait(stage, stages))
        for each in stages:
            if error := self._errors.pop(each, None):
                raise error

    def _wait(self, stage: Stage, stages: Collection[Stage]) -> None:
        with self._changed:
            self._awaited = stage
            try:
                self._changed.wait_for(lambda: any(each in self._errors for each in stages) or self._is_done(stages))
            finally:
                self._awaited = None

    def _is_done(self, stages: Collection[Stage]) -> bool:
        """Whether the outcomes are known and recorded."""
        if self._thread is None:
            return True
        known = not self._fed and not self._joining and not any(self._open[each] for each in stages)
        return known and self._recorded >= self._needed

    def _guarded(self, wait: Callable[[], None]) -> None:
        """Wait; an interruption meanwhile ends the sending first."""
        try:
            wait()
        except BaseException:
            self.end()
            raise

    def _join(self) -> None:
        while (thread := self._thread) is not None:
            thread.join()

    def _alone(self, step: Callable[[], tuple[list[RepairTarget], Sent]]) -> Part:
        """Do a step in this thread, from the ledger."""
        self.rest()
        began = time.time()
        targets, sent = step()
        self._dispatch.close_early()
        calls = Calls(sent.calls, sent.api_seconds, began, time.time()) if sent.calls else Calls()
        return Part(sent, calls, targets)

    def _failed(self, stage: Stage) -> list[int]:
        with self._changed:
            rows = self._rows.items()
            return [number for number, row in rows if row.status is _Status.FAILED and row.stage is stage]

    def _part(self, stage: Stage) -> Part:
        with self._changed:
            branches = {branch for branch in _BRANCHES for row in self._rows.values() if row.stage in branch}
            part = Part(Sent(), Calls(), at_once=len(branches) == len(_BRANCHES))
            for number, row in self._rows.items():
                part.calls.add(row.calls[stage])
                if row.joined and row.began_at is stage:
                    part.sent.followed.append(row.entry)
                if row.stage is stage and row.outcome is not None:
                    part.sent.outcomes[number] = row.outcome
                if row.stage is stage and row.left is not None:
                    part.sent.left.append(row.left)
                if row.target is not None and stage is Stage.LOOK_UP:
                    part.targets.append(row.target)
        part.sent.calls, part.sent.api_seconds = part.calls.number, part.calls.api_seconds
        return part

    # ---- feeding

    def _feed(self, fed: _Fed) -> None:
        with self._changed:
            self._fed.append(fed)
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="sender")
                thread.start()
                self._thread = thread

    def _feed_again(self, entry_ids: Sequence[int]) -> None:
        if entry_ids:
            with self._changed:
                for entry_id in entry_ids:
                    self._set(self._rows[entry_id], _Status.OPEN)
            self._feed(_Fed(lambda: self._dispatch.take_up(entry_ids), frozenset(entry_ids)))

    def _set(self, row: _Row, status: _Status, stage: Stage | None = None) -> None:
        """Every change of where a row is."""
        if row.status is _Status.OPEN:
            self._open[row.stage] -= 1
            if not self._open[row.stage]:
                self._needed = self._told
        row.status, row.stage = status, stage or row.stage
        if row.status is _Status.OPEN:
            self._open[row.stage] += 1

    # ---- the thread

    def _run(self) -> None:
        try:
            while self._has_more():
                self._send()
        except BaseException as error:  # noqa: BLE001 whoever awaits must not wait for a thread that is gone
            with self._changed:
                self._errors[self._awaited or Stage.START] = error
                self._fed, self._corrected, self._thread = [], [], None
                self._changed.notify_all()

    def _send(self) -> None:
        """One stretch of sending."""
        failure: BaseException | None = None
        worker = self._dispatch.worker(self, on_answer=self._on_answer, on_outcome=self._on_outcome)
        try:
            worker.send(self._joined())
        except BaseException as error:  # noqa: BLE001 whatever it is, the step that it concerns raises it
            failure = error
        self._end_stretch(worker.sent, failure)

    def _has_more(self) -> bool:
        with self._changed:
            if not self._fed and not self._corrected:
                self._thread = None
                self._changed.notify_all()
            return self._thread is not None

    def _end_stretch(self, sent: Sent, failure: BaseException | None) -> None:
        self._dispatch.progress.add(sent)
        try:
            self._dispatch.close_early()
        except BaseException as error:  # noqa: BLE001 as above
            failure = failure or error
        left = {entry.entry_id: entry for entry in sent.left}
        with self._changed:
            self._joining = False
            if failure is not None:
                self._fail(failure)
            else:
                self._recorded = self._told_before = self._told
                for number, row in self._rows.items():
                    if row.status is _Status.OPEN and row not in self._corrected and not self._is_fed(number):
                        row.left = left.get(number, row.entry)
                        self._set(row, _Status.SETTLED)
            self._stopped = None
            self._changed.notify_all()

    def _is_fed(self, entry_id: int) -> bool:
        return any(entry_id in fed.entry_ids for fed in self._fed)

    def _fail(self, error: BaseException) -> None:
        """Give the error to the step that it concerns, and go on with the other branch."""
        unsure = {
            number: row for number, row in self._rows.items() if row.status is _Status.OPEN or row.told > self._recorded
        }
        stage = self._concerned(error, {row.stage for row in unsure.values()})
        failed = next(branch for branch in _BRANCHES if stage in branch)
        for row in unsure.values():
            self._set(row, _Status.FAILED)
        others = [number for number, row in unsure.items() if row.stage not in failed and not self._is_fed(number)]
        self._corrected = [row for row in self._corrected if row.stage not in failed]
        self._errors[stage] = error
        self._recorded = self._told_before = self._told
        of_the_branch = fields(stage=stage.value, error=type(error).__name__, others=len(others))
        _log.warning("sending of a branch ended", extra=of_the_branch)
        for number, row in unsure.items():
            if row.stage not in failed and self._is_fed(number):
                self._set(row, _Status.OPEN)
        self._feed_again(others)

    def _concerned(self, error: BaseException, unsure: Collection[Stage]) -> Stage:
        if self._stopped is not None and self._stopped[0] is error:
            return self._stopped[1]
        stages = [stage for stage in Stage if stage in unsure]
        if isinstance(error, AllStartsRefused):
            stages = [stage for stage in stages if stage is not Stage.LOOK_UP] or stages
        if self._awaited is not None and (self._awaited in stages or not stages):
            return self._awaited
        return stages[0] if stages else Stage.START

    # ---- what the worker asks and tells, in the thread

    @property
    def delay(self) -> float:
        """Seconds until there may be further rows, or until what is recorded has to be told."""
        if not self._owner.is_alive():
            self._dispatch.stop()
        with self._changed:
            due = self._fed or self._corrected or self._recorded < self._needed
            return 0.0 if due else float("inf")

    def take(self, *_: object) -> Sequence[Work]:
        """The rows that join now: whoever waits, all may."""
        with self._changed:
            # A whole round ago: whatever the worker writes together, by now it is written.
            self._recorded, self._told_before = self._told_before, self._told
            self._changed.notify_all()
        return self._joined()

    def _joined(self) -> list[Work]:
        with self._changed:
            fed, self._fed = self._fed, []
            corrected = [row for row in self._corrected if row.told <= self._recorded]
            self._joining = True
        works: list[Work] = []
        for each in fed:
            entries = each.claim()
            works += [work for entry in entries if (work := self._work_of(entry)) is not None]
            self._settle(each.entry_ids.difference(entry.entry_id for entry in entries))
        works += self._followers(corrected)
        self._dispatch.touch(works)
        with self._changed:
            self._joining = False
            self._changed.notify_all()
        return works

    def _work_of(self, entry: Entry) -> Work | None:
        """The call to make first for a row; None where it needs none."""
        with self._changed:
            row = self._rows.setdefault(entry.entry_id, _row_of(entry, joined=True))
            row.entry, row.left = entry, None
            if entry.state not in TO_SEND:
                self._set(row, _Status.SETTLED)
                return None
            self._set(row, _Status.OPEN)
            work = targeted(entry, row.target)
            if row.stage is Stage.LOOK_UP:
                self._move_on(row, work, work.step)
            return work

    def _settle(self, entry_ids: Collection[int]) -> None:
        """Rows that are not ours any more."""
        with self._changed:
            for entry_id in entry_ids:
                self._set(self._rows[entry_id], _Status.SETTLED)

    def _followers(self, corrected: Sequence[_Row]) -> list[Work]:
        """Claim corrected rows as they are now; they go on in the stage of what they were."""
        if not corrected:
            return []
        former = {row.entry.run_id: row for row in corrected}
        entries = self._dispatch.claim_anew([row.outcome.entry for row in corrected if row.outcome])
        with self._changed:
            for entry in entries:
                row = former[entry.run_id]
                follower = _Row(entry, row.stage, joined=True, corrected=row.corrected + 1, stage=row.stage)
                self._rows[entry.entry_id] = follower
            self._corrected = [row for row in self._corrected if row not in corrected]
            works = [work for entry in entries if (work := self._work_of(entry)) is not None]
            for row in corrected:
                self._set(row, _Status.SETTLED)
        return works

    def _on_answer(self, work: Work, answer: Answer, decision: Decision | None) -> None:
        now = time.time()
        with self._changed:
            row = self._rows[work.entry.entry_id]
            row.calls[row.stage].add(Calls(1, answer.seconds, now - answer.seconds, now))
            if isinstance(decision, Stop):
                self._stopped = self._stopped or (decision.error, row.stage)
            if row.stage is Stage.LOOK_UP:
                self._move_on(row, work, decision)

    def _move_on(self, row: _Row, work: Work, step: Step | Decision | None) -> None:
        """From the look-up to the repair, once it is known what to call."""
        if isinstance(step, (RepairRun, StartRun)):
            row.target = target_of(work, step)
            # The answer is recorded like an outcome.
            self._told += 1
            self._set(row, row.status, Stage.REPAIR)

    def _on_outcome(self, outcome: RowOutcome) -> None:
        with self._changed:
            row = self._rows[outcome.entry.entry_id]
            self._told += 1
            row.outcome, row.told = outcome, self._told
            if outcome.superseded and row.corrected < MOST_GENERATIONS:
                self._corrected.append(row)
            else:
                self._set(row, _Status.SETTLED)


def _told(stage: Stage, part: Part) -> Part:
    calls = part.calls
    times = fields(
        stage=stage.value,
        calls=calls.number,
        first=_moment(calls.first),
        last=_moment(calls.last),
        both_branches_at_once=part.at_once,
    )
    _log.info("calls of a step", extra=times)
    return part


def _moment(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")


def _row_of(entry: Entry, *, joined: bool = False) -> _Row:
    stage = Stage.START if entry.branch is Branch.NEW else Stage.LOOK_UP
    return _Row(entry, stage, joined, stage=stage)
