"""Both branches in one thread: what each step gets, what becomes of an error, and how it ends early."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from types import FrameType

import pytest

from pm_dagster.dispatch.model import Call, EntryState, Outcome, RunSnapshot
from pm_dagster.dispatch.sender import Sender
from pm_dagster.dispatch.service import RepairTarget
from pm_dagster.dispatch.worker import Sent
from pm_dagster.errors import (
    AllStartsRefused,
    AuthenticationFailed,
    ConfigurationError,
    ControlPlaneUnavailable,
    Refused,
    WorkspaceUnavailable,
)
from pm_dagster_tests.dispatch.test_dispatch_pass import SETTINGS, Stage, _Clock
from pm_dagster_tests.fakes.runs import Fault, InMemoryRuns

_LONGEST_SECONDS = 20.0
_NEW, _REPAIRS = (1, 2, 3), (11, 12)


class _GatedRuns(InMemoryRuns):
    """Calls of some kinds wait in front of a gate; ``arrived`` says how many of a kind came so far."""

    def __init__(self) -> None:
        super().__init__()
        self.gates: dict[Call, threading.Event] = {}
        self.arrived: dict[Call, threading.Semaphore] = {call: threading.Semaphore(0) for call in Call}

    def start(self, job_id: int, parameters: Mapping[str, str], idempotency_token: str) -> int:
        self._pass(Call.RUN_NOW)
        return super().start(job_id, parameters, idempotency_token)

    def repair(self, run_id: int, parameters: Mapping[str, str], latest_repair_id: int | None) -> int:
        self._pass(Call.REPAIR)
        return super().repair(run_id, parameters, latest_repair_id)

    def look_up(self, run_id: int) -> RunSnapshot:
        self._pass(Call.GET_RUN)
        return super().look_up(run_id)

    def _pass(self, call: Call) -> None:
        self.arrived[call].release()
        if gate := self.gates.get(call):
            assert gate.wait(_LONGEST_SECONDS), f"{call} is held for ever"


class _Gated(Stage):
    """Three new rows and two repairs."""

    runs: _GatedRuns

    def __init__(self) -> None:
        super().__init__()
        self.runs = _GatedRuns()
        for number in _NEW:
            self.database.add(number)
        for number in _REPAIRS:
            self.database.add(number, previous_run_id=self.runs.failed_run(repairs=1))

    def hold(self, call: Call) -> threading.Event:
        return self.runs.gates.setdefault(call, threading.Event())

    def states(self, numbers: tuple[int, ...]) -> set[EntryState]:
        records = [self.database.newest(number) for number in numbers]
        return {record.entry.state for record in records if record is not None}

    def counts(self) -> tuple[int, int, int]:
        return self.runs.count(Call.RUN_NOW), self.runs.count(Call.GET_RUN), self.runs.count(Call.REPAIR)


@pytest.fixture
def stage() -> Iterator[_Gated]:
    stage = _Gated()
    yield stage
    for gate in stage.runs.gates.values():
        gate.set()
    assert not _sending()


def _sending() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "sender"]


class _Run:
    """A dispatch whose rows are claimed, and its sender."""

    def __init__(self, stage: _Gated, **options: object) -> None:
        self.stage = stage
        self.dispatch = stage.dispatch(**{"settings": SETTINGS, **options})  # type: ignore[arg-type]
        claimed = self.dispatch.claim(self.dispatch.read())
        self.claimed = claimed
        self.new = [entry.entry_id for entry in claimed.new]
        self.repair = [entry.entry_id for entry in claimed.repair]
        self.sender = Sender(self.dispatch)

    def finish(self, *parts: Sent) -> Mapping[object, str]:
        """As the last op does; gives the status of each row."""
        self.sender.rest()
        whole = Sent.of(parts)
        closed = self.dispatch.close(self.claimed.entries, whole)
        self.dispatch.report(self.claimed, whole, closed)
        return self.stage.database.statuses()


def test_new_runs_are_answered_although_nobody_awaits_the_repairs_yet(stage: _Gated) -> None:
    held = stage.hold(Call.REPAIR)
    run = _Run(stage)
    run.sender.begin()
    started = run.sender.start(run.new)
    assert stage.states(_NEW) <= {EntryState.ACCEPTED, EntryState.SCHEDULED}
    looked_up = run.sender.look_up(run.repair)
    for _ in _REPAIRS:
        assert stage.runs.arrived[Call.REPAIR].acquire(timeout=_LONGEST_SECONDS), "each follows its look-up at once"
    held.set()
    repaired = run.sender.repair(looked_up.targets)
    assert [len(part.sent.outcomes) for part in (started, looked_up, repaired)] == [3, 0, 2]
    assert [part.calls.number for part in (started, looked_up, repaired)] == [3, 2, 2]
    assert [part.sent.calls for part in (started, looked_up, repaired)] == [3, 2, 2]
    assert {target.run_id for target in looked_up.targets} == set(_REPAIRS)
    assert all(part.at_once for part in (started, looked_up, repaired))
    assert started.calls.first is not None
    assert repaired.calls.last is not None
    assert started.calls.first <= repaired.calls.last
    assert pickle.loads(pickle.dumps(started.sent)) == started.sent  # noqa: S301 our own
    statuses = run.finish(started.sent, looked_up.sent, repaired.sent)
    assert set(statuses.values()) == {"SCHEDULED"}
    assert stage.counts() == (3, 2, 2)


def test_repairs_are_made_although_nobody_awaits_the_new_runs_yet(stage: _Gated) -> None:
    held = stage.hold(Call.RUN_NOW)
    run = _Run(stage)
    run.sender.begin()
    looked_up = run.sender.look_up(run.repair)
    repaired = run.sender.repair(looked_up.targets)
    assert stage.states(_REPAIRS) <= {EntryState.ACCEPTED, EntryState.SCHEDULED}
    held.set()
    started = run.sender.start(run.new)
    statuses = run.finish(started.sent, looked_up.sent, repaired.sent)
    assert set(statuses.values()) == {"SCHEDULED"}
    assert stage.counts() == (3, 2, 2)


def test_a_run_that_is_active_already_is_settled_by_the_look_up(stage: _Gated) -> None:
    active = next(iter(stage.runs.runs))
    stage.runs.runs[active].life_cycle, stage.runs.runs[active].result = "RUNNING", None
    run = _Run(stage)
    run.sender.begin()
    looked_up = run.sender.look_up(run.repair)
    assert [outcome.outcome for outcome in looked_up.sent.outcomes.values()] == [Outcome.ADOPTED]
    (target,) = looked_up.targets
    repaired = run.sender.repair(looked_up.targets)
    assert list(repaired.sent.outcomes) == [target.entry_id]
    assert run.sender.start(run.new).calls.number == 3
    run.sender.rest()


def test_new_runs_are_tried_again_while_the_repairs_go_on(stage: _Gated) -> None:
    held = stage.hold(Call.REPAIR)
    stage.fault(Call.RUN_NOW, AuthenticationFailed("expired", status=401))
    run = _Run(stage, settings=replace(SETTINGS, concurrency=8))
    run.sender.begin()
    with pytest.raises(AuthenticationFailed):
        run.sender.start(run.new)
    started = run.sender.start(run.new)
    assert len(started.sent.outcomes) == 3
    assert stage.states(_REPAIRS) == {EntryState.SENDING}
    held.set()
    looked_up = run.sender.look_up(run.repair)
    repaired = run.sender.repair(looked_up.targets)
    statuses = run.finish(started.sent, looked_up.sent, repaired.sent)
    assert set(statuses.values()) == {"SCHEDULED"}
    # The one that was refused is asked for again, and none whose answer is known.
    assert stage.counts() == (4, 2, 2)
    assert len(stage.runs.runs) == 5


def test_an_error_of_a_look_up_is_raised_once_and_by_its_own_step(stage: _Gated) -> None:
    stage.fault(Call.GET_RUN, ConfigurationError("every answer is too long"))
    run = _Run(stage)
    run.sender.begin()
    started = run.sender.start(run.new)
    assert len(started.sent.outcomes) == 3
    with pytest.raises(ConfigurationError, match="too long"):
        run.sender.look_up(run.repair)
    looked_up = run.sender.look_up(run.repair)
    repaired = run.sender.repair(looked_up.targets)
    assert set(run.finish(started.sent, looked_up.sent, repaired.sent).values()) == {"SCHEDULED"}
    assert stage.runs.count(Call.RUN_NOW) == 3
    assert stage.runs.count(Call.REPAIR) == 2


def test_an_error_of_a_repair_leaves_the_look_up_in_peace(stage: _Gated) -> None:
    stage.fault(Call.REPAIR, AuthenticationFailed("expired", status=401))
    run = _Run(stage, settings=replace(SETTINGS, concurrency=1))
    run.sender.begin()
    looked_up = run.sender.look_up(run.repair)
    assert len(looked_up.targets) == 2
    with pytest.raises(AuthenticationFailed):
        run.sender.repair(looked_up.targets)
    started = run.sender.start(run.new)
    repaired = run.sender.repair(looked_up.targets)
    assert set(run.finish(started.sent, looked_up.sent, repaired.sent).values()) == {"SCHEDULED"}
    assert stage.counts()[0] == 3
    assert stage.counts()[2] == 3
    assert [len(stage.runs.runs[number].repairs) for number in list(stage.runs.runs)[:2]] == [2, 2]


@pytest.mark.parametrize("method", ["record", "intend", "resume"])
def test_a_database_that_stays_away_is_an_error_of_each_step_and_what_is_known_is_kept(
    stage: _Gated, method: str
) -> None:
    clock = _Clock()
    run = _Run(stage, stop=clock, clock=clock)
    stage_faults = run.dispatch.control.faults  # type: ignore[attr-defined]
    if method == "resume":
        # The look-up that begins again is the first to ask.
        stage.fault(Call.GET_RUN, AuthenticationFailed("expired", status=401))
        stage_faults[method] = [ControlPlaneUnavailable("it restarts")]
    else:
        stage_faults[method] = [ControlPlaneUnavailable("it restarts")] * 12
    run.sender.begin()
    parts: list[Sent] = []
    targets: list[RepairTarget] = []

    def look_up() -> None:
        part = run.sender.look_up(run.repair)
        targets.extend(part.targets)
        parts.append(part.sent)

    steps: list[Callable[[], object]] = [
        lambda: parts.append(run.sender.start(run.new).sent),
        look_up,
        lambda: parts.append(run.sender.repair(targets).sent),
    ]
    raised = [error for step in steps if (error := _until_it_works(step))]
    assert any(raised)
    assert set(run.finish(*parts).values()) == {"SCHEDULED"}
    # Resent with the same token, or looked up first: nothing runs twice.
    assert len(stage.runs.runs) == 5
    assert [len(each.repairs) for each in list(stage.runs.runs.values())[:2]] == [2, 2]


def _until_it_works(step: Callable[[], object]) -> list[str]:
    """As Dagster's retries do; gives the errors."""
    errors: list[str] = []
    for _ in range(4):
        try:
            step()
        except (ControlPlaneUnavailable, AuthenticationFailed) as error:
            errors.append(type(error).__name__)
        else:
            return errors
    raise AssertionError(errors)


def test_starts_that_are_all_refused_are_an_error_of_what_starts(stage: _Gated) -> None:
    for job in range(101, 121):
        stage.database.add(job, job_id=job)
    no = Fault(Refused("HTTP 403 PERMISSION_DENIED", status=403))
    stage.runs.faults = {Call.RUN_NOW: [no] * 100, Call.REPAIR: [no] * 100}
    run = _Run(stage)
    run.sender.begin()
    with pytest.raises(AllStartsRefused, match="No row is blamed"):
        run.sender.start(run.new)
    with suppress(AllStartsRefused):
        run.sender.repair(run.sender.look_up(run.repair).targets)
    run.sender.rest()
    assert set(stage.database.statuses().values()) == {"WAITING"}
    assert len(stage.runs.runs) == 2


def _correct(stage: _Gated, number: int) -> None:
    row = stage.database.rows[number]
    row.raw = replace(row.raw, parameters={"RUN_ID": str(number), "FILE_NAME": "right.csv"})


def test_rows_that_are_corrected_meanwhile_are_sent_as_they_are_now(stage: _Gated) -> None:
    """Answers are lost, the owner corrects the rows, and their next generations are sent in their own branches."""
    lost = WorkspaceUnavailable("no answer", maybe_applied=True)
    stage.runs.faults = {
        Call.RUN_NOW: [Fault(lost, after_effect=True)] * 3,
        Call.REPAIR: [Fault(lost, after_effect=True)] * 2,
    }
    first = stage.dispatch(replace(SETTINGS, call_tries=1))
    with pytest.raises(WorkspaceUnavailable):
        first.run()
    stage.runs.faults.clear()
    stage.database.alive.clear()
    for number in (*_NEW, *_REPAIRS):
        _correct(stage, number)
    started_before = len(stage.runs.runs)
    run = _Run(stage)
    run.sender.begin()
    started = run.sender.start(run.new)
    looked_up = run.sender.look_up(run.repair)
    repaired = run.sender.repair(looked_up.targets)
    assert started.sent.followed
    assert set(run.finish(started.sent, looked_up.sent, repaired.sent).values()) == {"SCHEDULED"}
    for number in _NEW:
        record = stage.database.newest(number)
        assert record is not None
        assert record.accepted_run_id is not None
        assert stage.runs.runs[record.accepted_run_id].parameters["FILE_NAME"] == "right.csv"
    assert len(stage.runs.runs) <= started_before + 3
    assert stage.run().read == 0


@contextmanager
def _interrupted_by(number: int) -> Iterator[None]:
    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(number, interrupt)
    try:
        yield
    finally:
        signal.signal(number, before)


def test_an_interruption_awaits_what_is_under_way_and_leaves_the_rest(stage: _Gated) -> None:
    held = stage.hold(Call.RUN_NOW)
    run = _Run(stage, settings=replace(SETTINGS, concurrency=3))

    def interrupt() -> None:
        assert stage.runs.arrived[Call.RUN_NOW].acquire(timeout=_LONGEST_SECONDS)
        while run.sender._awaited is None:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGUSR1)
        while not run.dispatch._stop.is_set():
            time.sleep(0.01)
        held.set()

    run.sender.begin()
    interrupting = threading.Thread(target=interrupt)
    with _interrupted_by(signal.SIGUSR1):
        interrupting.start()
        with pytest.raises(KeyboardInterrupt):
            run.sender.start(run.new)
    interrupting.join()
    assert not _sending()
    begun = {record.entry.run_id for record in stage.database.ledger.values() if record.accepted_run_id}
    assert len(begun) == stage.runs.count(Call.RUN_NOW) + stage.runs.count(Call.REPAIR) > 0
    assert {r.entry.state for r in stage.database.ledger.values()} <= {
        EntryState.SCHEDULED,
        EntryState.ACCEPTED,
        EntryState.CLAIMED,
    }
    assert len(begun) < len(_NEW) + len(_REPAIRS)
    run.dispatch.control.end()
    assert stage.run().left == 0
    assert set(stage.database.statuses().values()) == {"SCHEDULED"}
    assert (stage.counts()[0], stage.counts()[2]) == (3, 2)


def test_it_ends_with_the_thread_that_made_it(stage: _Gated) -> None:
    """A process whose main thread is gone must end, too: it sends no further rows."""
    held = stage.hold(Call.RUN_NOW)
    runs: list[_Run] = []

    def main() -> None:
        runs.append(_Run(stage, settings=replace(SETTINGS, concurrency=1)))
        runs[0].sender.begin()
        assert stage.runs.arrived[Call.RUN_NOW].acquire(timeout=_LONGEST_SECONDS)

    thread = threading.Thread(target=main)
    thread.start()
    thread.join()
    (sending,) = _sending()
    assert not sending.daemon
    held.set()
    sending.join(_LONGEST_SECONDS)
    assert not sending.is_alive()
    assert sum(stage.counts()) < 7
    assert EntryState.SENDING not in stage.states((*_NEW, *_REPAIRS))


def test_ending_it_is_harmless_where_nothing_is_sent(stage: _Gated) -> None:
    run = _Run(stage)
    run.sender.end()
    run.sender.rest()
    run.sender.begin()
    run.sender.rest()
    run.sender.end()
    assert len(run.sender.start(run.new).sent.outcomes) == 3


def test_the_deadline_holds_for_both_branches(stage: _Gated) -> None:
    clock = _Clock()
    run = _Run(
        stage,
        settings=replace(SETTINGS, rate_run_now=0.1, rate_repair=0.1, deadline_seconds=5.0),
        stop=clock,
        clock=clock,
    )
    run.sender.begin()
    started = run.sender.start(run.new)
    looked_up = run.sender.look_up(run.repair)
    repaired = run.sender.repair(looked_up.targets)
    assert started.sent.left
    assert repaired.sent.left
    everything = {**started.sent.outcomes, **looked_up.sent.outcomes, **repaired.sent.outcomes}
    left = [*started.sent.left, *looked_up.sent.left, *repaired.sent.left]
    assert len(everything) + len(left) == 5
    assert clock.now <= 1000.0 + 5.0 + 1.0


def test_rows_may_join_at_any_time_and_their_branch_is_awaited_with_them(stage: _Gated) -> None:
    held = stage.hold(Call.REPAIR)
    run = _Run(stage)
    run.sender.begin()
    run.sender.start(run.new)
    stage.database.add(4)
    run.sender.feed(lambda: run.dispatch.claim(run.dispatch.read()).entries)
    started = run.sender.start(run.new)
    assert [entry.run_id for entry in started.sent.followed] == [4]
    assert len(started.sent.outcomes) == 4
    held.set()
    looked_up = run.sender.look_up(run.repair)
    repaired = run.sender.repair(looked_up.targets)
    # Also when nothing is being sent any more.
    run.sender.rest()
    stage.database.add(13, previous_run_id=stage.runs.failed_run())
    run.sender.feed(lambda: run.dispatch.claim(run.dispatch.read()).entries)
    again = run.sender.look_up(run.repair)
    repaired_again = run.sender.repair(again.targets)
    assert [entry.run_id for entry in again.sent.followed] == [13]
    assert len(repaired_again.sent.outcomes) == len(repaired.sent.outcomes) + 1
    statuses = run.finish(started.sent, again.sent, repaired_again.sent)
    assert set(statuses.values()) == {"SCHEDULED"}
    assert len(statuses) == 7


def test_a_step_without_the_others_sends_its_own_rows_only(stage: _Gated) -> None:
    """As in a process that runs one op, or in a re-execution of some."""
    run = _Run(stage)
    started = run.sender.start(run.new)
    assert stage.counts() == (3, 0, 0)
    assert not started.at_once
    assert started.calls.number == 3
    looked_up = run.sender.look_up(run.repair)
    assert stage.counts() == (3, 2, 0)
    repaired = run.sender.repair(looked_up.targets)
    assert stage.counts() == (3, 2, 2)
    assert set(run.finish(started.sent, looked_up.sent, repaired.sent).values()) == {"SCHEDULED"}
