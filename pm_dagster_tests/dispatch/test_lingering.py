"""After its rows a dispatch looks for further ones, for as long as it is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import pytest

from pm_dagster.dispatch.in_doubt import intent_committed
from pm_dagster.dispatch.model import Call
from pm_dagster.dispatch.report import Report
from pm_dagster.errors import AuthenticationFailed, ControlPlaneUnavailable, WorkspaceUnavailable
from pm_dagster_tests.dispatch.test_dispatch_pass import SETTINGS, Stage, _Clock
from pm_dagster_tests.fakes.control_plane import InMemoryControlPlane


class Later(InMemoryControlPlane):
    """Something happens at the given looks for rows, counted from 1."""

    happens: Mapping[int, Callable[[], object]]
    looks = 0

    def has_work(self, *, ours: bool = False) -> bool:
        """As the fake."""
        self.looks += 1
        self.happens.get(self.looks, lambda: None)()
        return super().has_work(ours=ours)


def _lingering(
    stage: Stage, happens: Mapping[int, Callable[[], object]], **changes: object
) -> tuple[Report, Later, float]:
    """A dispatch that lingers for ten seconds, on a clock that waiting moves on; and when it ended."""
    settings = replace(SETTINGS, **{"linger_seconds": 10.0, **changes})  # type: ignore[arg-type]
    clock = _Clock()
    dispatch = stage.dispatch(settings, stop=clock, clock=clock)
    control = Later(stage.database, settings)
    control.happens = happens
    dispatch.control.end()
    dispatch.control = control
    dispatch._budget._control = control
    return dispatch.run(), control, clock.now - 1000.0


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_rows_that_come_while_it_lingers_are_in_its_report(stage: Stage) -> None:
    stage.database.add(1)
    report, control, ended = _lingering(
        stage,
        {
            3: lambda: stage.database.add(2),
            9: lambda: stage.database.add(3, previous_run_id=stage.runs.failed_run()),
        },
    )
    assert (report.read, report.scheduled, report.calls) == (3, 3, 4)
    assert sorted(row.run_id or 0 for row in report.rows) == [1, 2, 3]
    assert 18 < ended < 24
    assert 18 <= control.looks <= 24


def test_without_rows_it_ends_when_its_time_is_over(stage: Stage) -> None:
    report, control, ended = _lingering(stage, {})
    assert (report.read, 10 < ended < 13, 9 <= control.looks <= 12) == (0, True, True)


def test_a_dispatch_that_does_not_linger_does_not_look(stage: Stage) -> None:
    stage.database.add(1)
    report, control, _ = _lingering(stage, {}, linger_seconds=0.0)
    assert (report.scheduled, control.looks) == (1, 0)


def test_its_limit_ends_it(stage: Stage) -> None:
    stage.database.add(1)
    happens = {number: partial(stage.database.add, number + 1) for number in range(1, 9)}
    report, _, ended = _lingering(stage, happens, dispatch_limit=4)
    assert (report.scheduled, ended < 8) == (4, True)
    assert stage.runs.count(Call.RUN_NOW) == 4


def test_its_deadline_ends_it(stage: Stage) -> None:
    stage.database.add(1)
    happens = {number: partial(stage.database.add, number + 1) for number in range(1, 100)}
    report, _, ended = _lingering(stage, happens, deadline_seconds=20.0)
    assert 15 < report.scheduled < 21
    assert 18 < ended <= 20.5


def test_a_stop_request_ends_it(stage: Stage) -> None:
    stop = threading.Event()
    dispatch = stage.dispatch(replace(SETTINGS, linger_seconds=60.0), stop=stop)
    threading.Timer(1.0, stop.set).start()
    began = time.monotonic()
    assert dispatch.run().read == 0
    assert time.monotonic() - began < 10


def test_what_a_dispatcher_leaves_that_dies_meanwhile_is_rescued(stage: Stage) -> None:
    stage.database.add(1)
    dead = stage.dispatch()
    (entry,) = dead.claim(dead.read()).new
    dead.control.intend([intent_committed(entry)])
    run_id = stage.runs.start(entry.job_id, entry.parameters, entry.idempotency_token)
    report, _, _ = _lingering(stage, {4: dead.control.end})
    assert (report.rescued, report.scheduled) == (1, 1)
    assert list(stage.runs.runs) == [run_id]


def test_a_row_whose_pause_is_over_is_taken_again(stage: Stage) -> None:
    stage.database.add(1)
    stage.fault(Call.RUN_NOW, *[WorkspaceUnavailable("broken", status=500)] * SETTINGS.call_tries)

    def pause_is_over() -> None:
        for record in stage.database.ledger.values():
            record.not_before = None

    report, _, _ = _lingering(stage, {4: pause_is_over})
    assert (report.scheduled, len(report.rows), report.rescued) == (1, 1, 0)
    assert len(stage.runs.runs) == 1


def test_a_row_that_was_locked_when_it_was_to_be_closed_is_closed_while_it_lingers(stage: Stage) -> None:
    stage.database.add(1)
    seen: list[str] = []
    row = stage.database.rows[1]

    def lock(_outcome: object) -> None:
        row.locked = True

    settings = replace(SETTINGS, linger_seconds=60.0)
    clock = _Clock()
    dispatch = stage.dispatch(settings, stop=clock, clock=clock, on_outcome=lock)
    control = Later(stage.database, settings)
    control.happens = {5: lambda: setattr(row, "locked", False), 8: lambda: seen.append(row.status)}
    dispatch.control = control
    dispatch._budget._control = control
    report = dispatch.run()
    assert (report.scheduled, seen) == (1, ["SCHEDULED"])


def test_it_looks_less_often_for_rows_that_it_cannot_have(stage: Stage) -> None:
    stage.database.add(1)
    stage.database.rows[1].locked = True
    report, control, _ = _lingering(stage, {}, linger_seconds=30.0)
    assert (report.scheduled, control.looks < 12) == (0, True)


# ---- following


def _followed(stage: Stage, happens: Mapping[int, Callable[[], object]], ends_after: int) -> tuple[list[Report], Later]:
    clock = _Clock()
    dispatch = stage.dispatch(SETTINGS, stop=clock, clock=clock)
    control = Later(stage.database, SETTINGS)
    control.happens = {**happens, ends_after: clock.set}
    dispatch.control = control
    dispatch._budget._control = control
    return list(dispatch.follow()), control


def test_each_pass_that_had_rows_is_reported(stage: Stage) -> None:
    stage.database.add(1)

    def two() -> None:
        stage.database.add(2)
        stage.database.add(3)

    happens: Mapping[int, Callable[[], object]] = {10: two, 30: partial(stage.database.add, 4)}
    reports, _ = _followed(stage, happens, 40)
    assert [(report.read, report.scheduled, report.calls) for report in reports] == [(1, 1, 1), (2, 2, 2), (1, 1, 1)]
    assert all(report.seconds < 5 for report in reports)


def test_who_follows_waits_for_a_database_and_a_workspace_that_are_away(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    def away() -> None:
        stage.database.add(1)
        stage.fault(Call.RUN_NOW, *[WorkspaceUnavailable("down", maybe_applied=False)] * 12)

    reports, _ = _followed(stage, {3: away}, 60)
    assert "pass failed" in caplog.text
    assert sum(report.scheduled for report in reports) == 1


def test_a_database_that_never_answered_is_not_waited_for(stage: Stage) -> None:
    dispatch = stage.dispatch(SETTINGS)
    assert isinstance(dispatch.control, InMemoryControlPlane)
    dispatch.control.faults["has_work"] = [ControlPlaneUnavailable("away")]
    with pytest.raises(ControlPlaneUnavailable):
        next(dispatch.follow())


def test_wrong_credentials_end_the_following(stage: Stage) -> None:
    stage.database.add(1)
    stage.fault(Call.RUN_NOW, AuthenticationFailed("who are you", status=401))
    with pytest.raises(AuthenticationFailed):
        _followed(stage, {}, 60)
