"""When the sensor and the schedule start a dispatch, and what they say when they do not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import pytest
from dagster._daemon.sensor import MIN_INTERVAL_LOOP_TIME

from pm_dagster.errors import ControlPlaneUnavailable
from pm_dagster.orchestration import automation, names
from pm_dagster_tests.fakes.control_plane import InMemoryControlPlane
from pm_dagster_tests.orchestration.conftest import CodeLocation


@pytest.fixture
def code_location() -> Iterator[CodeLocation]:
    """A schedule's context wants an instance that is kept somewhere."""
    with dg.DagsterInstance.local_temp() as instance:
        yield CodeLocation(instance)


Tick = Callable[[CodeLocation], dg.RunRequest | dg.SkipReason]


def _sensor(code_location: CodeLocation) -> dg.RunRequest | dg.SkipReason:
    repository = code_location.definitions().get_repository_def()
    sensor = repository.get_sensor_def(names.SENSOR)
    with dg.build_sensor_context(
        instance=code_location.instance, resources={"control_table": code_location.table()}
    ) as context:
        data = sensor.evaluate_tick(context)
    return data.run_requests[0] if data.run_requests else dg.SkipReason(data.skip_message)


def _schedule(code_location: CodeLocation) -> dg.RunRequest | dg.SkipReason:
    repository = code_location.definitions().get_repository_def()
    schedule = repository.get_schedule_def(names.SCHEDULE)
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    # It opens an instance of its own. Left open, that would put this test's storage back for whichever test runs when
    # it is collected.
    with dg.build_schedule_context(
        instance=code_location.instance,
        resources={"control_table": code_location.table()},
        scheduled_execution_time=moment,
    ) as context:
        data = schedule.evaluate_tick(context)
    return data.run_requests[0] if data.run_requests else dg.SkipReason(data.skip_message)


each_tick = pytest.mark.parametrize("tick", [_sensor, _schedule])


@each_tick
def test_skips_with_counts_when_nothing_waits(code_location: CodeLocation, tick: Tick) -> None:
    answer = tick(code_location)
    assert isinstance(answer, dg.SkipReason)
    assert str(answer.skip_message) == (
        "No waiting job is ready to dispatch (backing off: 0, being dispatched: 0, refused: 0)."
    )


@each_tick
def test_asks_for_a_run_without_a_run_key(code_location: CodeLocation, tick: Tick) -> None:
    code_location.database.add(1)
    answer = tick(code_location)
    assert isinstance(answer, dg.RunRequest)
    assert answer.run_key is None
    assert answer.tags["process_manager/waiting"] == "1"


@each_tick
@pytest.mark.parametrize("status", [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED])
def test_skips_while_a_dispatch_is_under_way(
    code_location: CodeLocation, tick: Tick, status: dg.DagsterRunStatus
) -> None:
    code_location.database.add(1)
    job = code_location.definitions().resolve_job_def(names.JOB)
    run = code_location.instance.create_run_for_job(job, status=status)
    answer = tick(code_location)
    assert isinstance(answer, dg.SkipReason)
    assert answer.skip_message == "A dispatch is already under way."
    code_location.instance.delete_run(run.run_id)
    assert isinstance(tick(code_location), dg.RunRequest)


@each_tick
def test_ends_a_dispatch_whose_dispatcher_died_and_asks_for_the_next(code_location: CodeLocation, tick: Tick) -> None:
    code_location.database.add(1)
    job = code_location.definitions().resolve_job_def(names.JOB)
    run = code_location.instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED, tags=job.tags)
    dead = InMemoryControlPlane(code_location.database, actor=names.actor(run.run_id))
    dead.register()
    code_location.database.alive.discard(dead._me)
    assert isinstance(tick(code_location), dg.SkipReason), "it was heard of a moment ago"
    code_location.instance.event_log_storage.delete_events(run.run_id)
    storage: Any = code_location.instance.run_storage
    with storage.connect() as connection:
        connection.exec_driver_sql("UPDATE runs SET create_timestamp = '2026-01-01 00:00:00'")
    code_location.database.registered[dead._me].seen -= 20
    assert isinstance(tick(code_location), dg.RunRequest)
    ended = code_location.instance.get_run_by_id(run.run_id)
    assert ended is not None
    assert ended.status is dg.DagsterRunStatus.FAILURE


@each_tick
def test_fails_when_it_cannot_read(code_location: CodeLocation, tick: Tick) -> None:
    code_location.faults["backlog"] = [ControlPlaneUnavailable("the database is restarting")]
    with pytest.raises(Exception) as caught:  # noqa: PT011 Dagster wraps it
        tick(code_location)
    assert "the database is restarting" in f"{caught.value!r} {caught.value.__cause__!r}"


def test_both_are_off_until_somebody_turns_them_on(code_location: CodeLocation) -> None:
    repository = code_location.definitions().get_repository_def()
    assert repository.get_sensor_def(names.SENSOR).default_status is dg.DefaultSensorStatus.STOPPED
    assert repository.get_schedule_def(names.SCHEDULE).default_status is dg.DefaultScheduleStatus.STOPPED


def test_the_sensor_is_due_at_each_look_of_the_daemon(code_location: CodeLocation) -> None:
    """With the daemon's own interval, a tick that began milliseconds late would make the next one be left out."""
    interval = code_location.definitions().get_repository_def().get_sensor_def(names.SENSOR).minimum_interval_seconds
    assert interval is not None
    assert interval < MIN_INTERVAL_LOOP_TIME
    assert automation._WATCH_SECONDS < MIN_INTERVAL_LOOP_TIME
