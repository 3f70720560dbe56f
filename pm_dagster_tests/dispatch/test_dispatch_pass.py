"""Whole passes in memory: what is sent, what is not, and what is left after trouble."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from datetime import datetime

import pytest

from pm_dagster.config.masking import MASK, register_secret
from pm_dagster.config.settings import Settings
from pm_dagster.dispatch.in_doubt import intent_committed
from pm_dagster.dispatch.model import Call, Entry, EntryState, KnownRun, Outcome, RowOutcome
from pm_dagster.dispatch.ports import Change
from pm_dagster.dispatch.report import Report
from pm_dagster.dispatch.service import Dispatch
from pm_dagster.dispatch.waiting_job import sort_rows
from pm_dagster.errors import (
    AuthenticationFailed,
    ControlPlaneUnavailable,
    Refused,
    Throttled,
    WorkspaceUnavailable,
)
from pm_dagster_tests.fakes.control_plane import InMemoryControlPlane, InMemoryDatabase
from pm_dagster_tests.fakes.runs import Fault, InMemoryRuns

SETTINGS = Settings(rate_run_now=0, rate_repair=0, rate_get_run=0, call_backoff_seconds=0, settle_seconds=0)


class Stage:
    """One database, one workspace, and passes over them."""

    def __init__(self) -> None:
        self.database = InMemoryDatabase()
        self.runs = InMemoryRuns()

    def dispatch(self, settings: Settings = SETTINGS, **more: object) -> Dispatch:
        """A dispatch of its own."""
        return Dispatch(InMemoryControlPlane(self.database, settings), self.runs, settings, **more)  # type: ignore[arg-type]

    def run(self, settings: Settings = SETTINGS) -> Report:
        """A whole pass, and its end."""
        dispatch = self.dispatch(settings)
        try:
            return dispatch.run()
        finally:
            dispatch.control.end()

    def fault(self, call: Call, *errors: Exception | None, after: bool = False) -> None:
        """What the next calls of a kind meet."""
        self.runs.faults[call] = [Fault(error, after_effect=after) for error in errors]  # type: ignore[arg-type]


class _Clock(threading.Event):
    """A clock, and a stop request whose waiting makes it go on."""

    def __init__(self, now: float = 1000.0) -> None:
        super().__init__()
        self.now = now

    def __call__(self) -> float:
        return self.now

    def wait(self, timeout: float | None = None) -> bool:
        self.now += timeout or 0.0
        return self.is_set()


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_new_and_failed_rows_are_all_scheduled(stage: Stage) -> None:
    for number in range(1, 11):
        stage.database.add(number)
    failed = [stage.runs.failed_run(repairs=number % 3) for number in range(10)]
    for number, run_id in enumerate(failed, start=11):
        stage.database.add(number, previous_run_id=run_id)
    report = stage.run()
    assert set(stage.database.statuses().values()) == {"SCHEDULED"}
    assert (report.read, report.scheduled, report.left) == (20, 20, 0)
    assert stage.runs.count(Call.RUN_NOW) == stage.runs.count(Call.REPAIR) == 10
    assert stage.run().read == 0


def test_one_bad_row_of_each_kind_stops_no_good_one(stage: Stage) -> None:
    for job_id in (None, True, 0, "x", 1.5, 10**30):
        stage.database.add(len(stage.database.rows) + 1, job_id=job_id)
    stage.database.add(50, job_id=999)
    stage.database.add(51)
    stage.run()
    statuses = dict(stage.database.statuses())
    assert statuses.pop(51) == "SCHEDULED"
    assert set(statuses.values()) == {"FAILED"}


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("failures", [1, 2, 3])
def test_a_lost_answer_to_a_new_run_makes_one_run(stage: Stage, failures: int, after: bool) -> None:  # noqa: FBT001
    stage.database.add(1)
    stage.fault(Call.RUN_NOW, *[WorkspaceUnavailable("lost")] * failures, after=after)
    stage.run()
    assert len(stage.runs.runs) == 1
    assert stage.database.statuses() == {1: "SCHEDULED"}
    assert stage.runs.count(Call.RUN_NOW) == failures + 1


def test_a_lost_answer_to_a_repair_is_looked_up_not_repeated(stage: Stage) -> None:
    run_id = stage.runs.failed_run(repairs=2)
    stage.database.add(1, previous_run_id=run_id)
    stage.fault(Call.REPAIR, WorkspaceUnavailable("lost"), after=True)
    stage.run()
    assert stage.runs.count(Call.REPAIR) == 1
    assert len(stage.runs.runs[run_id].repairs) == 3
    record = stage.database.newest(1)
    assert record is not None
    assert (record.outcome, record.accepted_repair_id) == (Outcome.ADOPTED, stage.runs.runs[run_id].repairs[-1])


def test_a_repair_that_never_arrived_is_made(stage: Stage) -> None:
    run_id = stage.runs.failed_run()
    stage.database.add(1, previous_run_id=run_id)
    stage.fault(Call.REPAIR, WorkspaceUnavailable("lost"))
    stage.run()
    assert len(stage.runs.runs[run_id].repairs) == 1
    assert stage.database.statuses() == {1: "SCHEDULED"}


@pytest.mark.slow
def test_throttling_uses_up_no_attempt(stage: Stage) -> None:
    stage.database.add(1)
    stage.fault(Call.RUN_NOW, *[Throttled("slow", retry_after=0.0)] * 10)
    report = stage.run(replace(SETTINGS, max_attempts=1, call_tries=1))
    assert (report.throttled, report.scheduled) == (10, 1)


@pytest.mark.parametrize("pause", [1e9, 61.0])
def test_a_long_retry_after_leaves_the_row_for_later(stage: Stage, pause: float) -> None:
    stage.database.add(1)
    stage.fault(Call.RUN_NOW, Throttled("slow", retry_after=pause))
    stage.run()
    record = stage.database.newest(1)
    assert record is not None
    assert (record.entry.state, record.entry.attempts) == (EntryState.DEFERRED, 0)
    assert stage.database.statuses() == {1: "WAITING"}


def test_wrong_credentials_stop_the_dispatch_and_fail_no_row(stage: Stage) -> None:
    for number in range(1, 40):
        stage.database.add(number)
    stage.fault(Call.RUN_NOW, *[AuthenticationFailed("who are you", status=401)] * 39)
    with pytest.raises(AuthenticationFailed):
        stage.run(replace(SETTINGS, concurrency=1))
    assert stage.runs.count(Call.RUN_NOW) == 1
    assert set(stage.database.statuses().values()) == {"WAITING"}
    stage.runs.faults.clear()
    assert stage.run().scheduled == 39


def test_rows_sent_before_the_credentials_failed_are_closed(stage: Stage) -> None:
    for number in range(1, 6):
        stage.database.add(number)
    stage.runs.refuse_after(2, Call.RUN_NOW, AuthenticationFailed("expired"))
    with pytest.raises(AuthenticationFailed):
        stage.run(replace(SETTINGS, concurrency=1))
    assert sorted(stage.database.statuses().values()) == ["SCHEDULED"] * 2 + ["WAITING"] * 3


def test_a_workspace_that_answers_nobody_stops_the_dispatch(stage: Stage) -> None:
    for number in range(1, 101):
        stage.database.add(number)
    stage.fault(Call.RUN_NOW, *[WorkspaceUnavailable("down", maybe_applied=False)] * 1000)
    with pytest.raises(WorkspaceUnavailable):
        stage.run()
    assert stage.runs.count(Call.RUN_NOW) < 1000
    assert set(stage.database.statuses().values()) == {"WAITING"}
    stage.runs.faults.clear()
    assert stage.run().scheduled == 100
    assert len(stage.runs.runs) == 100


@pytest.mark.parametrize("method", ["claim", "intend", "record", "close", "rescue"])
def test_a_pass_broken_by_the_database_is_continued_without_a_second_run(stage: Stage, method: str) -> None:
    """The database stays away longer than the loop waits; ``stop`` spares us the waiting."""
    stage.database.add(1)
    stage.database.add(2, previous_run_id=stage.runs.failed_run())
    stop = threading.Event()
    stop.set()
    dispatch = stage.dispatch(stop=stop) if method in ("intend", "record") else stage.dispatch()
    control = dispatch.control
    assert isinstance(control, InMemoryControlPlane)
    control.faults[method] = [ControlPlaneUnavailable("away")] * 20
    if method not in ("intend", "record"):
        with pytest.raises(ControlPlaneUnavailable):
            dispatch.run()
    else:
        dispatch.run()
    control.end()
    stage.run()
    assert set(stage.database.statuses().values()) == {"SCHEDULED"}
    assert (stage.runs.count(Call.RUN_NOW), stage.runs.count(Call.REPAIR)) == (1, 1)


def test_a_workspace_that_is_away_is_not_tried_for_every_row(stage: Stage) -> None:
    """Each row that is tried leaves an intent to resolve."""
    for number in range(1, 301):
        stage.database.add(number)
    stage.fault(Call.RUN_NOW, *[WorkspaceUnavailable("down", maybe_applied=False)] * 1000)
    with pytest.raises(WorkspaceUnavailable):
        stage.run(replace(SETTINGS, concurrency=4))
    assert stage.runs.count(Call.RUN_NOW) <= 4 * 3
    stage.runs.faults.clear()
    assert stage.run().scheduled == 300
    assert len(stage.runs.runs) == 300


def test_answers_that_one_call_failed_stop_no_other(stage: Stage) -> None:
    """The workspace answers 500 for each row of a broken job: every other row must have its turn."""
    for number in range(1, 102):
        stage.database.add(number)
    stage.fault(Call.RUN_NOW, *[WorkspaceUnavailable("broken", status=500)] * 400)
    report = stage.run(replace(SETTINGS, concurrency=4))
    deferred = sum(row.outcome is Outcome.DEFERRED for row in report.rows)
    assert deferred + report.scheduled == 101
    assert report.left == 0


def test_rows_are_closed_while_others_are_sent(stage: Stage) -> None:
    """The owner sees SCHEDULED within seconds, not when the last row of the pass is through."""
    for number in range(1, 31):
        stage.database.add(number)
    seen: list[int] = []
    ticks = itertools.count()

    def look(_outcome: RowOutcome) -> None:
        seen.append(list(stage.database.statuses().values()).count("SCHEDULED"))

    stage.dispatch(replace(SETTINGS, concurrency=1), clock=lambda: next(ticks) / 10, on_outcome=look).run()
    assert 0 < max(seen) < 30


def test_a_short_absence_of_the_database_is_waited_out(stage: Stage) -> None:
    stage.database.add(1)
    dispatch = stage.dispatch()
    assert isinstance(dispatch.control, InMemoryControlPlane)
    dispatch.control.faults["record"] = [ControlPlaneUnavailable("restarting")]
    assert dispatch.run().scheduled == 1
    assert stage.runs.count(Call.RUN_NOW) == 1


def test_a_stopped_dispatch_sends_nothing_and_leaves_its_rows(stage: Stage) -> None:
    stage.database.add(1)
    stop = threading.Event()
    stop.set()
    report = stage.dispatch(stop=stop).run()
    assert (report.left, report.calls) == (1, 0)
    assert stage.database.statuses() == {1: "WAITING"}


def test_after_the_deadline_nothing_is_sent(stage: Stage) -> None:
    stage.database.add(1)
    moments = iter([0.0])
    report = stage.dispatch(clock=lambda: next(moments, 10_000.0)).run()
    assert (report.left, stage.runs.calls) == (1, [])


def test_a_dispatch_takes_at_most_its_limit(stage: Stage) -> None:
    for number in range(1, 11):
        stage.database.add(number)
    assert stage.run(replace(SETTINGS, dispatch_limit=4)).scheduled == 4


def test_a_row_that_leaves_waiting_before_it_is_sent_is_not_sent(stage: Stage) -> None:
    stage.database.add(1)
    dispatch = stage.dispatch()
    claimed = dispatch.claim(dispatch.read())
    stage.database.rows[1].status = "RUNNING"
    sent = dispatch.send(claimed.new)
    dispatch.close(claimed.new, sent)
    assert [outcome.outcome for outcome in sent.outcomes.values()] == [Outcome.WITHDRAWN]
    assert (stage.runs.calls, stage.database.statuses()) == ([], {1: "RUNNING"})


def test_what_a_dead_dispatcher_sent_is_resolved_with_its_token(stage: Stage) -> None:
    """It died between the effect and the answer."""
    stage.database.add(1)
    dead = stage.dispatch()
    (entry,) = dead.claim(dead.read()).new
    dead.control.intend([intent_committed(entry)])
    run_id = stage.runs.start(entry.job_id, entry.parameters, entry.idempotency_token)
    dead.control.end()
    report = stage.run()
    assert (report.rescued, report.scheduled) == (1, 1)
    assert list(stage.runs.runs) == [run_id]
    assert stage.database.rows[1].databricks_run_id == run_id


def test_prepared_repairs_are_sent_once_however_often_asked(stage: Stage) -> None:
    for number in range(1, 6):
        stage.database.add(number, previous_run_id=stage.runs.failed_run())
    dispatch = stage.dispatch()
    claimed = dispatch.claim(dispatch.read())
    targets, sent = dispatch.look_up_repairs(claimed.repair)
    assert (len(targets), len(sent.outcomes), stage.runs.count(Call.REPAIR)) == (5, 0, 0)
    sent.add(dispatch.repair(targets))
    dispatch.repair(targets)
    assert stage.runs.count(Call.REPAIR) == 5
    assert len(dispatch.close(claimed.repair, sent)) == 5


def test_a_target_of_a_run_that_is_not_the_rows_any_more_is_looked_up_again(stage: Stage) -> None:
    """Targets may be hours old when a run is executed again; the row has failed with another run since."""
    stage.database.add(1, previous_run_id=stage.runs.failed_run())
    first = stage.dispatch()
    targets, _ = first.look_up_repairs(first.claim(first.read()).repair)
    first.control.end()
    later_run = stage.runs.failed_run(repairs=2)
    stage.database.add(1, previous_run_id=later_run)
    second = stage.dispatch()
    second.claim(second.read())
    second.control.end()
    stage.dispatch().repair(targets)
    assert stage.runs.count(Call.REPAIR) == 1
    assert len(stage.runs.runs[later_run].repairs) == 3


def _refused(status: int) -> Refused:
    return Refused("no", status=status)


@pytest.mark.parametrize("error", [_refused(400), _refused(404)])
def test_a_definite_no_is_marked_with_its_reason(stage: Stage, error: Refused) -> None:
    stage.database.add(1)
    stage.fault(Call.RUN_NOW, error)
    stage.run()
    assert stage.database.statuses() == {1: "FAILED"}
    assert stage.database.rows[1].message == "run-now was refused: no"


def test_outcomes_are_told_as_they_happen(stage: Stage) -> None:
    stage.database.add(1)
    heard: list[RowOutcome] = []
    stage.dispatch(on_outcome=heard.append).run()
    assert [(outcome.entry.run_id, outcome.outcome) for outcome in heard] == [(1, Outcome.ACCEPTED)]


STATES: Mapping[str, tuple[Callable[[InMemoryRuns, int], None], str, int, int]] = {
    "active": (lambda runs, run: _put(runs, run, "RUNNING", None), "SCHEDULED", 0, 0),
    "succeeded": (lambda runs, run: _put(runs, run, "TERMINATED", "SUCCESS"), "SUCCESS", 0, 0),
    "failed": (lambda runs, run: _put(runs, run, "TERMINATED", "FAILED"), "SCHEDULED", 0, 1),
    "skipped": (lambda runs, run: _put(runs, run, "SKIPPED", None), "SCHEDULED", 1, 0),
    "gone": (lambda runs, run: runs.runs.__delitem__(run), "SCHEDULED", 1, 0),
}


def _put(runs: InMemoryRuns, run_id: int, life: str, result: str | None) -> None:
    runs.runs[run_id].life_cycle, runs.runs[run_id].result = life, result


@pytest.mark.parametrize("name", STATES)
def test_a_repair_row_gets_what_its_run_needs(stage: Stage, name: str) -> None:
    change, status, started, repaired = STATES[name]
    run_id = stage.runs.failed_run()
    change(stage.runs, run_id)
    stage.database.add(1, previous_run_id=run_id)
    stage.run()
    assert stage.database.statuses() == {1: status}
    assert (stage.runs.count(Call.RUN_NOW), stage.runs.count(Call.REPAIR)) == (started, repaired)


def test_credentials_that_expire_while_a_repair_is_in_doubt_do_not_release_it(stage: Stage) -> None:
    """Else the next dispatch would not know of the repair, whose run may have failed again by then."""
    run_id = stage.runs.failed_run()
    stage.database.add(1, previous_run_id=run_id)
    stage.fault(Call.REPAIR, WorkspaceUnavailable("lost"), after=True)
    stage.fault(Call.GET_RUN, None, AuthenticationFailed("expired"))
    with pytest.raises(AuthenticationFailed):
        stage.run()
    run = stage.runs.runs[run_id]
    assert len(run.repairs) == 1
    run.life_cycle, run.result = "INTERNAL_ERROR", "FAILED"
    stage.run()
    assert len(run.repairs) == 1
    assert stage.database.statuses() == {1: "SCHEDULED"}


def test_credentials_that_expire_while_a_new_run_is_in_doubt_do_not_release_it(stage: Stage) -> None:
    """Else nobody would find the run of a row that left WAITING meanwhile."""
    stage.database.add(1)
    stage.runs.faults[Call.RUN_NOW] = [
        Fault(WorkspaceUnavailable("lost"), after_effect=True),
        Fault(AuthenticationFailed("expired")),
    ]
    with pytest.raises(AuthenticationFailed):
        stage.run()
    (run_id,) = stage.runs.runs
    stage.database.rows[1].status = "RUNNING"
    stage.run()
    record = stage.database.newest(1)
    assert record is not None
    assert (record.entry.state, record.accepted_run_id) == (EntryState.SCHEDULED, run_id)


class Slow(InMemoryRuns):
    """Says when a run-now is under way, and answers when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.under_way, self.go_on = threading.Event(), threading.Event()

    def start(self, job_id: int, parameters: Mapping[str, str], idempotency_token: str) -> int:
        """run-now."""
        run_id = super().start(job_id, parameters, idempotency_token)
        self.under_way.set()
        assert self.go_on.wait(20)
        return run_id


@pytest.mark.parametrize("way", ["asked to stop", "broken off"])
def test_a_call_under_way_is_awaited_and_recorded(stage: Stage, way: str) -> None:
    stage.runs = slow = Slow()
    stage.database.add(1)
    stop = threading.Event()

    class Ended(InMemoryControlPlane):
        def heartbeat(self) -> None:
            assert slow.under_way.wait(20)
            if stop.is_set() or way == "broken off":
                slow.go_on.set()
            if way == "broken off":
                raise KeyboardInterrupt
            stop.set()

    dispatch = Dispatch(Ended(stage.database, SETTINGS), slow, SETTINGS, stop=stop)
    entries = dispatch.claim(dispatch.read()).new
    with pytest.raises(KeyboardInterrupt) if way == "broken off" else nullcontext():
        dispatch.send(entries)
    record = stage.database.newest(1)
    assert record is not None
    assert record.entry.state in (EntryState.ACCEPTED, EntryState.SCHEDULED)
    assert [record.accepted_run_id] == list(slow.runs)


@pytest.mark.parametrize(("rate", "a_second", "most"), [(90.0, 27, 30), (10.0, 10, 11)])
def test_searches_keep_to_what_a_workspace_takes(stage: Stage, rate: float, a_second: int, most: int) -> None:
    """runs/list has a limit of its own, 30 a second: https://docs.databricks.com/aws/en/resources/limits."""
    moments: list[float] = []
    clock = _Clock()

    class Timed(InMemoryRuns):
        def find_started(self, job_id: int, since: datetime, parameters: Mapping[str, str]) -> list[int]:
            moments.append(clock.now)
            return super().find_started(job_id, since, parameters)

    stage.runs = Timed()
    for number in range(1, 101):
        stage.database.add(number)
    first = InMemoryControlPlane(stage.database, SETTINGS)
    entries = first.claim(sort_rows(first.waiting(100))[0])
    first.intend([intent_committed(entry) for entry in entries])
    first.end()
    for row in stage.database.rows.values():
        row.status = "CANCELED"
    stage.dispatch(replace(SETTINGS, rate_get_run=rate), clock=clock, stop=clock).run()
    assert len(moments) == 100
    busiest = max(sum(start <= moment < start + 1.0 for moment in moments) for start in moments)
    assert a_second <= busiest <= most


def _two_rows_of_one_file(stage: Stage) -> None:
    """Their parameters are the same; the answers to both were lost, and now the workspace refuses both."""
    stage.runs = _FoundTogether()
    for number in (1, 2):
        stage.database.add(number)
        row = stage.database.rows[number]
        row.raw = replace(row.raw, parameters={"FILE_NAME": "a.csv"})
    stage.fault(Call.RUN_NOW, *[WorkspaceUnavailable("lost")] * 2, after=True)
    with suppress(WorkspaceUnavailable):
        stage.run(replace(SETTINGS, call_tries=1))
    assert len(stage.runs.runs) == 2
    stage.fault(Call.RUN_NOW, *[Refused("no", status=400)] * 20)


class _FoundTogether(InMemoryRuns):
    """Two runs are started at one moment, and two searches are answered at one moment."""

    def __init__(self) -> None:
        super().__init__()
        self.together, self.begun = threading.Barrier(2), threading.Barrier(2)

    def start(self, job_id: int, parameters: Mapping[str, str], idempotency_token: str) -> int:
        """Both are under way before one is answered."""
        if not self.runs:
            self.begun.wait(20)
        return super().start(job_id, parameters, idempotency_token)

    def find_started(self, job_id: int, since: datetime, parameters: Mapping[str, str]) -> list[int]:
        """Both or none."""
        found = super().find_started(job_id, since, parameters)
        with suppress(threading.BrokenBarrierError):
            self.together.wait(0.3)
        return found


def _accepted(stage: Stage) -> list[int | None]:
    return [record.accepted_run_id for number in (1, 2) for record in [stage.database.newest(number)] if record]


def test_two_searches_answered_at_once_take_two_runs(stage: Stage) -> None:
    _two_rows_of_one_file(stage)
    stage.run(replace(SETTINGS, concurrency=2))
    assert sorted(_accepted(stage), key=str) == sorted(stage.runs.runs)
    assert stage.database.statuses() == {1: "SCHEDULED", 2: "SCHEDULED"}


class _Overtaken(InMemoryControlPlane):
    """Right after it was first told whose a run is, another dispatcher takes that run for another row."""

    def overtake(self, other: InMemoryControlPlane, entry: Entry) -> None:
        """Whom, and for which row."""
        self._by = [(other, entry)]

    def known_runs(self, databricks_run_ids: Collection[int]) -> list[KnownRun]:
        """What was true a moment ago."""
        known = super().known_runs(databricks_run_ids)
        if databricks_run_ids and self._by:
            other, entry = self._by.pop()
            run_id, more = max(databricks_run_ids), {"accepted_run_id": max(databricks_run_ids), "found": True}
            other.record([Change(entry.entry_id, (), EntryState.ACCEPTED, Outcome.ADOPTED, **more)])  # type: ignore[arg-type]
            assert self.database.newest(entry.run_id).accepted_run_id == run_id  # type: ignore[union-attr]
        return known


def test_a_run_that_another_took_between_the_reading_and_the_recording_is_passed_over(stage: Stage) -> None:
    _two_rows_of_one_file(stage)
    heard: list[RowOutcome] = []
    settings = replace(SETTINGS, concurrency=1)
    other, control = InMemoryControlPlane(stage.database, settings), _Overtaken(stage.database, settings)
    (held,) = other.rescue(1)
    control.overtake(other, held)
    report = Dispatch(control, stage.runs, settings, on_outcome=heard.append).run()
    first, second = sorted(stage.runs.runs)
    assert _accepted(stage) == ([second, first] if held.run_id == 1 else [first, second])
    assert [outcome.run_id for outcome in heard] == [first]
    assert report.scheduled == 1
    told = [event.kind for record in stage.database.ledger.values() for event in record.events]
    assert told.count("passed over") == 1


AWAY = WorkspaceUnavailable("nobody there", maybe_applied=False)
PATIENT = replace(SETTINGS, concurrency=4, call_tries=2, call_backoff_seconds=1.0)


def _outage(stage: Stage, clock: _Clock) -> tuple[Dispatch, list[Entry]]:
    """A dispatch of eight rows whose first stretch of sending found the workspace away, and what it claimed."""
    for number in range(1, 9):
        stage.database.add(number)
    dispatch = stage.dispatch(PATIENT, stop=clock, clock=clock)
    claimed = dispatch.claim(dispatch.read())
    stage.fault(Call.RUN_NOW, *[AWAY] * 100)
    with pytest.raises(WorkspaceUnavailable):
        dispatch.send(claimed.new)
    return dispatch, dispatch.take_up([entry.entry_id for entry in claimed.new])


def test_a_later_stretch_remembers_an_outage_and_sends_single_calls(stage: Stage) -> None:
    """As an op does that Dagster retries; the first stretch sends as many calls at once as fit in flight."""
    clock = _Clock()
    dispatch, entries = _outage(stage, clock)
    first = stage.runs.count(Call.RUN_NOW)
    assert first >= PATIENT.concurrency
    clock.now += 5.0
    with pytest.raises(WorkspaceUnavailable):
        dispatch.send(entries)
    assert 1 <= stage.runs.count(Call.RUN_NOW) - first <= PATIENT.call_tries
    assert set(stage.database.statuses().values()) == {"WAITING"}


def test_a_later_stretch_goes_on_at_once_when_the_outage_is_over(stage: Stage) -> None:
    clock = _Clock()
    dispatch, entries = _outage(stage, clock)
    stage.runs.faults[Call.RUN_NOW] = []
    began = clock.now
    sent = dispatch.send(entries)
    dispatch.close(entries, sent)
    assert clock.now - began < 1.0
    assert set(stage.database.statuses().values()) == {"SCHEDULED"}
    assert len(stage.runs.runs) == 8


def _events(caplog: pytest.LogCaptureFixture) -> dict[str, dict[str, object]]:
    """The fields of the newest log event of each name."""
    return {record.message: vars(record)["fields"] for record in caplog.records if "fields" in vars(record)}


def test_each_transition_of_a_row_is_logged(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="pm_dagster.dispatch")
    stage.database.add(1)
    stage.run()
    events = _events(caplog)
    (entry_id,) = stage.database.ledger
    about = {"run_id": 1, "entry": entry_id, "call": "run-now"}
    assert events["intent committed"] == about
    assert about.items() <= events["call decided"].items()
    assert (events["call decided"]["decision"], events["call decided"]["pause"]) == ("Accept", 0.0)
    assert about.items() <= events["row accepted"].items()
    assert {record.levelname for record in caplog.records if record.name.endswith("worker")} == {"DEBUG"}


def test_what_is_unusual_is_logged_at_info_or_warning(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="pm_dagster.dispatch")
    stage.database.add(1)
    stage.database.add(2, job_id=999)
    stage.fault(Call.RUN_NOW, Throttled("slow", retry_after=0.0), WorkspaceUnavailable("lost"))
    stage.run(replace(SETTINGS, concurrency=1))
    levels = {record.message: record.levelname for record in caplog.records}
    assert levels["throttled"] == "WARNING"
    assert levels["call in doubt"] == "INFO"
    events = _events(caplog)
    assert events["throttled"]["pause"] == 1.0
    assert events["refusal held"]["run_id"] == events["row quarantined"]["run_id"] == 2
    assert str(events["row quarantined"]["rule"]).startswith("the Jobs API")


def test_a_row_that_is_left_for_later_is_logged_with_its_pause(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="pm_dagster.dispatch")
    stage.database.add(1)
    stage.fault(Call.RUN_NOW, None, Refused("busy", status=409))
    stage.database.add(2)
    stage.run(replace(SETTINGS, concurrency=1, settle_seconds=40.0))
    deferred = _events(caplog)["row deferred"]
    assert (deferred["run_id"], deferred["pause"]) == (2, 40.0)


def test_an_outage_that_stops_the_sending_is_logged(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="pm_dagster.dispatch")
    _outage(stage, _Clock())
    names = [record.message for record in caplog.records]
    assert "circuit breaker opened" in names
    assert "single call" in names
    assert names[-1] == "sending stopped"
    assert _events(caplog)["sending stopped"]["error"] == "WorkspaceUnavailable"


@pytest.mark.parametrize("reason", ["stop requested", "deadline"])
def test_a_pass_that_ends_early_is_logged_with_what_it_leaves(
    stage: Stage, caplog: pytest.LogCaptureFixture, reason: str
) -> None:
    caplog.set_level(logging.DEBUG, logger="pm_dagster.dispatch")
    clock = _Clock()
    stage.database.add(1)
    dispatch = stage.dispatch(stop=clock, clock=clock)
    entries = dispatch.claim(dispatch.read()).new
    if reason == "deadline":
        clock.now += SETTINGS.deadline_seconds
    else:
        clock.set()
    assert dispatch.send(entries).left == entries
    ended = [record for record in caplog.records if record.message == "sending ended early"]
    assert [(record.levelname, vars(record)["fields"]) for record in ended] == [("INFO", {"reason": reason, "left": 1})]
    assert _events(caplog)["row not sent"] == {"run_id": 1, "entry": entries[0].entry_id, "call": "run-now"}


def test_answers_that_cannot_be_recorded_when_the_sending_is_broken_off_are_logged_without_secrets(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="pm_dagster.dispatch")
    register_secret("made-up-secret")
    stage.database.add(1)

    stage.runs = slow = Slow()

    class BrokenOff(InMemoryControlPlane):
        def heartbeat(self) -> None:
            assert slow.under_way.wait(20)
            slow.go_on.set()
            raise KeyboardInterrupt

        def record(self, changes: Sequence[Change]) -> set[int]:
            raise ControlPlaneUnavailable(f"no connection for made-up-secret: {len(changes)}")

    dispatch = Dispatch(BrokenOff(stage.database, SETTINGS), slow, SETTINGS)
    entries = dispatch.claim(dispatch.read()).new
    with pytest.raises(KeyboardInterrupt):
        dispatch.send(entries)
    events = _events(caplog)
    assert events["sending broken off"] == {"in_flight": 1}
    assert events["answers not recorded"] == {"entries": 1, "error": f"no connection for {MASK}: 1"}


def test_claimed_entries_are_read_again_only_after_they_were_sent(stage: Stage) -> None:
    stage.database.add(1)
    dispatch = stage.dispatch()
    assert isinstance(dispatch.control, InMemoryControlPlane)
    claimed = dispatch.claim(dispatch.read())
    ids = [entry.entry_id for entry in claimed.new]
    dispatch.control.faults["resume"] = [ControlPlaneUnavailable("away")]
    assert dispatch.take_up(ids) == claimed.new
    dispatch.send(claimed.new)
    with pytest.raises(ControlPlaneUnavailable):
        dispatch.take_up(ids)
    assert [entry.state for entry in dispatch.take_up(ids)] == [EntryState.ACCEPTED]


def test_a_dispatch_logs_what_it_claimed_rescued_and_closed(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    stage.database.add(1)
    dead = stage.dispatch()
    (entry,) = dead.claim(dead.read()).new
    dead.control.intend([intent_committed(entry)])
    dead.control.end()
    stage.database.add(2)
    with caplog.at_level("DEBUG", logger="pm_dagster.dispatch.service"):
        stage.run()
    events = [(r.getMessage(), r.fields) for r in caplog.records if r.name == "pm_dagster.dispatch.service"]  # type: ignore[attr-defined]
    assert [name for name, _ in events] == [
        "dispatch started", "rescued", "claimed", "rows claimed", "row closed", "row closed", "dispatch finished",
    ]  # fmt: skip
    assert [named["run_id"] for name, named in events if name in ("rescued", "claimed")] == [1, 2]
    assert [named["scheduled"] for name, named in events if name == "dispatch finished"] == [2]
