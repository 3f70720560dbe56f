"""A tick of the sensor watches the rows for a while where sensors have threads of their own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import dagster as dg
import pytest

from pm_dagster.dispatch.ports import Backlog
from pm_dagster.errors import ControlPlaneUnavailable
from pm_dagster.orchestration import automation, names
from pm_dagster.orchestration.resources import ControlTable
from pm_dagster_tests.fakes.control_plane import InMemoryControlPlane
from pm_dagster_tests.orchestration.conftest import CodeLocation

#: Longer than a pause between two looks, and shorter than a tick watches.
_SOON = 0.8


@pytest.fixture(params=[True, False], ids=["threads", "no threads"])
def threads(request: pytest.FixtureRequest) -> bool:
    """Whether the instance evaluates its sensors in threads."""
    return bool(request.param)


@pytest.fixture
def code_location(*, threads: bool) -> Iterator[CodeLocation]:
    overrides = {"sensors": {"use_threads": threads, "num_workers": 2}}
    with dg.instance_for_test(overrides=overrides) as instance:
        yield CodeLocation(instance)


def _tick(code_location: CodeLocation) -> tuple[int, float, str]:
    """How many runs the sensor asks for, how long it took, and what it says instead."""
    sensor = code_location.definitions().get_repository_def().get_sensor_def(names.SENSOR)
    began = time.monotonic()
    with dg.build_sensor_context(
        instance=code_location.instance, resources={"control_table": code_location.table()}
    ) as context:
        data = sensor.evaluate_tick(context)
    return len(data.run_requests or ()), time.monotonic() - began, str(data.skip_message)


def _soon(work: Callable[[], object]) -> None:
    timer = threading.Timer(_SOON, work)
    timer.daemon = True
    timer.start()


def test_a_row_that_comes_during_a_tick_starts_a_run_at_once(code_location: CodeLocation, *, threads: bool) -> None:
    _soon(lambda: code_location.database.add(1))
    runs, took, said = _tick(code_location)
    if threads:
        assert runs == 1
        assert _SOON <= took < automation._WATCH_SECONDS
    else:
        assert (runs, took < _SOON) == (0, True)
        assert "No waiting job is ready to dispatch" in said


def test_a_tick_without_rows_ends_before_the_next_one(code_location: CodeLocation, *, threads: bool) -> None:
    runs, took, said = _tick(code_location)
    assert runs == 0
    assert "No waiting job is ready to dispatch" in said
    assert (took > automation._WATCH_SECONDS / 2) is threads
    # The daemon looks every five seconds.
    assert took < 5


@pytest.mark.parametrize("threads", [True], indirect=True)
def test_a_tick_that_finds_rows_at_once_does_not_wait(code_location: CodeLocation) -> None:
    code_location.database.add(1)
    runs, took, _ = _tick(code_location)
    assert (runs, took < _SOON) == (1, True)


@pytest.mark.parametrize("threads", [True], indirect=True)
def test_a_dispatch_that_somebody_starts_meanwhile_is_not_joined_by_another(code_location: CodeLocation) -> None:
    job = code_location.definitions().resolve_job_def(names.JOB)

    def started_by_hand() -> None:
        code_location.instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
        code_location.database.add(1)

    _soon(started_by_hand)
    runs, _, said = _tick(code_location)
    assert (runs, said) == (0, "A dispatch is already under way.")


@pytest.mark.parametrize("threads", [True], indirect=True)
def test_a_database_that_goes_away_meanwhile_fails_the_tick(code_location: CodeLocation) -> None:
    def away() -> None:
        code_location.faults["backlog"] = [ControlPlaneUnavailable("the database is restarting")]

    _soon(away)
    with pytest.raises(Exception) as caught:  # noqa: PT011 Dagster wraps it
        _tick(code_location)
    assert "the database is restarting" in f"{caught.value!r} {caught.value.__cause__!r}"


class _SlowView(InMemoryControlPlane):
    """Takes a while for each look, and counts them."""

    looks = 0

    def backlog(self) -> Backlog:
        """Count what waits."""
        self.looks += 1
        time.sleep(0.1)
        return super().backlog()


@pytest.mark.parametrize("threads", [True], indirect=True)
def test_a_slow_view_is_looked_at_less_often(code_location: CodeLocation) -> None:
    slow = _SlowView(code_location.database, code_location.settings)
    table = ControlTable(lambda: (slow, code_location.settings))
    assert isinstance(automation._tick(code_location.instance, table, watch=automation._WATCH_SECONDS), dg.SkipReason)
    assert slow.looks == 2
