"""When the sensor and the schedule start a dispatch, and what they say when they do not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import pytest

from pm_dagster.errors import ControlPlaneUnavailable
from pm_dagster.orchestration import names
from pm_dagster_tests.fakes.control_plane import InMemoryControlPlane
from pm_dagster_tests.orchestration.conftest import World


@pytest.fixture
def world() -> Iterator[World]:
    """A schedule's context wants an instance that is kept somewhere."""
    with dg.DagsterInstance.local_temp() as instance:
        yield World(instance)


Tick = Callable[[World], dg.RunRequest | dg.SkipReason]


def _sensor(world: World) -> dg.RunRequest | dg.SkipReason:
    repository = world.definitions().get_repository_def()
    sensor = repository.get_sensor_def(names.SENSOR)
    with dg.build_sensor_context(instance=world.instance, resources={"control_table": world.table()}) as context:
        data = sensor.evaluate_tick(context)
    return data.run_requests[0] if data.run_requests else dg.SkipReason(data.skip_message)


def _schedule(world: World) -> dg.RunRequest | dg.SkipReason:
    repository = world.definitions().get_repository_def()
    schedule = repository.get_schedule_def(names.SCHEDULE)
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    # It opens an instance of its own. Left open, that would put this test's storage back for whichever test runs when
    # it is collected.
    with dg.build_schedule_context(
        instance=world.instance, resources={"control_table": world.table()}, scheduled_execution_time=moment
    ) as context:
        data = schedule.evaluate_tick(context)
    return data.run_requests[0] if data.run_requests else dg.SkipReason(data.skip_message)


each_tick = pytest.mark.parametrize("tick", [_sensor, _schedule])


@each_tick
def test_skips_with_counts_when_nothing_waits(world: World, tick: Tick) -> None:
    answer = tick(world)
    assert isinstance(answer, dg.SkipReason)
    assert str(answer.skip_message) == (
        "No waiting job is ready to dispatch (backing off: 0, being dispatched: 0, quarantined: 0)."
    )


@each_tick
def test_asks_for_a_run_without_a_run_key(world: World, tick: Tick) -> None:
    world.database.add(1)
    answer = tick(world)
    assert isinstance(answer, dg.RunRequest)
    assert answer.run_key is None
    assert answer.tags["process_manager/waiting"] == "1"


@each_tick
@pytest.mark.parametrize("status", [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED])
def test_skips_while_a_dispatch_is_under_way(world: World, tick: Tick, status: dg.DagsterRunStatus) -> None:
    world.database.add(1)
    job = world.definitions().resolve_job_def(names.JOB)
    run = world.instance.create_run_for_job(job, status=status)
    answer = tick(world)
    assert isinstance(answer, dg.SkipReason)
    assert answer.skip_message == "A dispatch is already under way."
    world.instance.delete_run(run.run_id)
    assert isinstance(tick(world), dg.RunRequest)


@each_tick
def test_ends_a_dispatch_whose_dispatcher_died_and_asks_for_the_next(world: World, tick: Tick) -> None:
    world.database.add(1)
    job = world.definitions().resolve_job_def(names.JOB)
    run = world.instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED, tags=job.tags)
    dead = InMemoryControlPlane(world.database, actor=names.actor(run.run_id))
    dead.register()
    world.database.alive.discard(dead._me)
    assert isinstance(tick(world), dg.SkipReason), "it was heard of a moment ago"
    world.instance.event_log_storage.delete_events(run.run_id)
    storage: Any = world.instance.run_storage
    with storage.connect() as connection:
        connection.exec_driver_sql("UPDATE runs SET create_timestamp = '2026-01-01 00:00:00'")
    world.database.registered[dead._me].seen -= 20
    assert isinstance(tick(world), dg.RunRequest)
    ended = world.instance.get_run_by_id(run.run_id)
    assert ended is not None
    assert ended.status is dg.DagsterRunStatus.FAILURE


@each_tick
def test_fails_when_it_cannot_read(world: World, tick: Tick) -> None:
    world.faults["backlog"] = [ControlPlaneUnavailable("the database is restarting")]
    with pytest.raises(Exception) as caught:  # noqa: PT011 Dagster wraps it
        tick(world)
    assert "the database is restarting" in f"{caught.value!r} {caught.value.__cause__!r}"


def test_both_are_off_until_somebody_turns_them_on(world: World) -> None:
    repository = world.definitions().get_repository_def()
    assert repository.get_sensor_def(names.SENSOR).default_status is dg.DefaultSensorStatus.STOPPED
    assert repository.get_schedule_def(names.SCHEDULE).default_status is dg.DefaultScheduleStatus.STOPPED
    assert (repository.get_sensor_def(names.SENSOR).minimum_interval_seconds or 99) <= 10
