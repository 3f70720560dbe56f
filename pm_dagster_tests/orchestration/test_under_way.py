"""What the sensor makes of runs that Dagster says are under way: whose they are, and whether they live."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import dagster as dg
import pytest
from dagster._core.events import EngineEventData
from dagster._core.remote_origin import (
    InProcessCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

from pm_dagster.definitions import build_definitions
from pm_dagster.errors import ConfigurationError, ControlPlaneUnavailable
from pm_dagster.orchestration import names
from pm_dagster.orchestration.jobs import single_flight
from pm_dagster_tests.fakes.control_plane import InMemoryControlPlane
from pm_dagster_tests.orchestration.conftest import CodeLocation

Tick = Callable[[CodeLocation], dg.RunRequest | dg.SkipReason]
_STARTED = dg.DagsterRunStatus.STARTED


@pytest.fixture
def code_location() -> Iterator[CodeLocation]:
    """Runs are kept somewhere, and one row waits."""
    with dg.DagsterInstance.local_temp() as instance:
        made = CodeLocation(instance)
        made.database.add(1)
        yield made


def _location(name: str) -> InProcessCodeLocationOrigin:
    return InProcessCodeLocationOrigin(LoadableTargetOrigin(module_name="pm_dagster.definitions"), location_name=name)


def _run(
    code_location: CodeLocation,
    *,
    location: str | None = "ours",
    job: str = names.JOB,
    status: dg.DagsterRunStatus = _STARTED,
    tags: dict[str, str] | None = None,
    definitions: dg.Definitions | None = None,
    **more: Any,  # noqa: ANN401 as Dagster has them
) -> dg.DagsterRun:
    """A run of a code location, as the daemon or the UI makes it; None: from the command line."""
    definitions = definitions or code_location.definitions()
    is_ours = job == names.JOB
    definition = definitions.resolve_job_def(job) if is_ours else definitions.resolve_implicit_global_asset_job_def()
    origin = None
    if location is not None:
        repository = RemoteRepositoryOrigin(_location(location), "__repository__")
        origin = RemoteJobOrigin(repository, job)
    return code_location.instance.create_run_for_job(
        definition, status=status, remote_job_origin=origin, tags={**definition.tags, **(tags or {})}, **more
    )


def _sensor(code_location: CodeLocation, location: str | None = "ours") -> dg.RunRequest | dg.SkipReason:
    repository = code_location.definitions().get_repository_def()
    context = dg.SensorEvaluationContext(
        instance_ref=None,
        last_tick_completion_time=None,
        last_run_key=None,
        cursor=None,
        log_key=None,
        repository_name="__repository__",
        repository_def=repository,
        instance=code_location.instance,
        sensor_name=names.SENSOR,
        resources={"control_table": dg.ResourceDefinition.hardcoded_resource(code_location.table())},
        code_location_origin=_location(location) if location else None,
    )
    with context:
        data = repository.get_sensor_def(names.SENSOR).evaluate_tick(context)
    return data.run_requests[0] if data.run_requests else dg.SkipReason(data.skip_message)


def _dies(code_location: CodeLocation, run: dg.DagsterRun, *, seconds_ago: float = 60.0) -> None:
    """The run was a dispatcher, and is one no more."""
    control = InMemoryControlPlane(code_location.database, code_location.settings, names.actor(run.run_id))
    control.register()
    code_location.database.registered[control._me].seen = time.monotonic() - seconds_ago
    code_location.database.alive.discard(control._me)


def _lives(code_location: CodeLocation, run: dg.DagsterRun) -> None:
    InMemoryControlPlane(code_location.database, code_location.settings, names.actor(run.run_id)).register()


def _age(code_location: CodeLocation, run: dg.DagsterRun, seconds: float) -> None:
    """Let the run be made some time ago, and nothing have happened since."""
    code_location.instance.event_log_storage.delete_events(run.run_id)
    storage: Any = code_location.instance.run_storage
    with storage.connect() as connection:
        connection.exec_driver_sql(
            "UPDATE runs SET create_timestamp = datetime('now', ?) WHERE run_id = ?",
            (f"-{seconds} seconds", run.run_id),
        )


def _status(code_location: CodeLocation, run: dg.DagsterRun) -> dg.DagsterRunStatus:
    now = code_location.instance.get_run_by_id(run.run_id)
    assert now is not None
    return now.status


def test_a_run_whose_dispatcher_lives_holds_up_the_next(code_location: CodeLocation) -> None:
    run = _run(code_location)
    _age(code_location, run, 500)
    _lives(code_location, run)
    answer = _sensor(code_location)
    assert isinstance(answer, dg.SkipReason)
    assert answer.skip_message == "A dispatch is already under way."
    assert _status(code_location, run) is _STARTED


def test_a_run_whose_dispatcher_died_is_ended_and_the_next_is_asked_for_in_the_same_tick(
    code_location: CodeLocation,
) -> None:
    run = _run(code_location)
    _age(code_location, run, 60)
    _dies(code_location, run)
    assert isinstance(_sensor(code_location), dg.RunRequest)
    assert _status(code_location, run) is dg.DagsterRunStatus.FAILURE
    (failure,) = code_location.instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.RUN_FAILURE).records
    message = failure.event_log_entry.dagster_event.message if failure.event_log_entry.dagster_event else ""
    assert message is not None
    assert "its dispatcher died; its last sign of life is 60 s old" in message
    assert "No row is lost" in message


def test_it_is_not_ended_while_there_are_events_of_it(code_location: CodeLocation) -> None:
    run = _run(code_location)
    _age(code_location, run, 600)
    _dies(code_location, run, seconds_ago=600)
    code_location.instance.report_engine_event("still here", run)
    assert isinstance(_sensor(code_location), dg.SkipReason)
    assert _status(code_location, run) is _STARTED


def test_a_run_of_several_processes_may_rest_between_two_of_them(code_location: CodeLocation) -> None:
    run = _run(code_location)
    code_location.instance.report_dagster_event(
        dg.DagsterEvent(
            dg.DagsterEventType.STEP_WORKER_STARTING.value, names.JOB, event_specific_data=EngineEventData()
        ),
        run.run_id,
        timestamp=time.time() - 60,
    )
    _dies(code_location, run)
    answer = _sensor(code_location)
    assert isinstance(answer, dg.SkipReason)
    assert "its dispatcher died; its last sign of life is 60 s old (the run is ended after 120 s)" in str(
        answer.skip_message
    )
    assert _status(code_location, run) is _STARTED


@pytest.mark.parametrize("fault", [ControlPlaneUnavailable("it restarts"), ConfigurationError("there is no ledger")])
def test_while_the_ledger_cannot_be_asked_nothing_is_ended_and_nothing_started(
    code_location: CodeLocation, fault: Exception
) -> None:
    run = _run(code_location)
    _age(code_location, run, 5000)
    _dies(code_location, run, seconds_ago=5000)
    code_location.faults["signs_of_life"] = [fault]
    answer = _sensor(code_location)
    assert isinstance(answer, dg.SkipReason)
    assert str(fault) in str(answer.skip_message)
    assert _status(code_location, run) is _STARTED


def test_a_dead_run_that_is_being_cancelled_is_cancelled(code_location: CodeLocation) -> None:
    run = _run(code_location, status=dg.DagsterRunStatus.CANCELING)
    _age(code_location, run, 60)
    _dies(code_location, run)
    assert isinstance(_sensor(code_location), dg.RunRequest)
    assert _status(code_location, run) is dg.DagsterRunStatus.CANCELED


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.STARTING])
def test_a_run_that_is_about_to_start_holds_up_the_next(
    code_location: CodeLocation, status: dg.DagsterRunStatus
) -> None:
    run = _run(code_location, status=status)
    assert isinstance(_sensor(code_location), dg.SkipReason)
    assert _status(code_location, run) is status


def test_a_run_whose_code_server_is_gone_before_its_worker_began_is_ended(code_location: CodeLocation) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
    server = json.dumps({"host": "127.0.0.1", "port": port})
    run = _run(code_location, status=dg.DagsterRunStatus.STARTING, tags={".dagster/grpc_info": server})
    assert isinstance(_sensor(code_location), dg.SkipReason)
    _age(code_location, run, 45)
    assert isinstance(_sensor(code_location), dg.RunRequest)
    assert _status(code_location, run) is dg.DagsterRunStatus.FAILURE


@pytest.mark.parametrize("noted", ['{"host": "127.0.0.1", "port": 1}', "no JSON", "[]", "{}"])
def test_where_the_code_server_cannot_be_asked_the_ledger_decides_alone(
    code_location: CodeLocation, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, noted: str
) -> None:
    """For instance because another version of Dagster has its client elsewhere, or notes the server in another form."""
    if "host" in noted:
        monkeypatch.delattr("dagster._grpc.types.CanCancelExecutionRequest")
    starts = _run(code_location, status=dg.DagsterRunStatus.STARTING, tags={".dagster/grpc_info": noted})
    _age(code_location, starts, 45)
    assert isinstance(_sensor(code_location), dg.SkipReason)
    assert _status(code_location, starts) is dg.DagsterRunStatus.STARTING
    asked = [record for record in caplog.records if record.message == "code server cannot be asked for a worker"]
    assert {record.__dict__["fields"]["dagster_run_id"] for record in asked} == {starts.run_id}
    _dies(code_location, starts)
    assert isinstance(_sensor(code_location), dg.RunRequest)
    assert _status(code_location, starts) is dg.DagsterRunStatus.FAILURE


def test_a_code_location_loads_without_what_dagster_may_change() -> None:
    loads = """
import sys, dagster
for name in [name for name in sys.modules if name.startswith("dagster._grpc")] + ["dagster._core.run_coordinator"]:
    sys.modules[name] = None
import pm_dagster.orchestration.automation
"""
    done = subprocess.run([sys.executable, "-c", loads], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_a_dispatch_that_hangs_does_not_hold_up_the_others_for_ever(code_location: CodeLocation) -> None:
    run = _run(code_location, status=dg.DagsterRunStatus.STARTING)
    started = dg.DagsterEvent(dg.DagsterEventType.RUN_START.value, names.JOB)
    code_location.instance.report_dagster_event(started, run.run_id, timestamp=time.time() - 1300)
    _lives(code_location, run)
    assert isinstance(_sensor(code_location), dg.RunRequest)
    assert _status(code_location, run) is _STARTED


def test_each_code_location_sees_its_own_runs(code_location: CodeLocation) -> None:
    theirs = _run(code_location, location="theirs")
    assert isinstance(_sensor(code_location, "ours"), dg.RunRequest)
    assert isinstance(_sensor(code_location, "theirs"), dg.SkipReason)
    _lives(code_location, theirs)
    assert isinstance(_sensor(code_location, "ours"), dg.RunRequest), (
        "the ledger keeps them apart if the table is the same"
    )


def test_a_dead_run_of_a_location_that_is_no_more_is_ended_by_whoever_has_its_table(
    code_location: CodeLocation,
) -> None:
    run = _run(code_location, location="before it was renamed")
    _age(code_location, run, 5000)
    assert isinstance(_sensor(code_location), dg.RunRequest)
    assert _status(code_location, run) is _STARTED, "whether it is of our table cannot be known"
    _dies(code_location, run)
    assert isinstance(_sensor(code_location), dg.RunRequest)
    assert _status(code_location, run) is dg.DagsterRunStatus.FAILURE


def test_a_run_for_another_control_table_is_not_judged_by_our_ledger(
    code_location: CodeLocation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours may be a copy of its ledger, in which its dispatcher has no session."""
    run, theirs = _run(code_location), _run(code_location, location="theirs")
    for each in (run, theirs):
        _age(code_location, each, 5000)
        _dies(code_location, each, seconds_ago=5000)
    monkeypatch.setenv("PM_POSTGRES_HOST", "copy.example.com")
    assert isinstance(_sensor(code_location), dg.RunRequest)
    assert [_status(code_location, each) for each in (run, theirs)] == [_STARTED, _STARTED]


def test_a_run_from_the_command_line_is_known_by_its_control_table(
    code_location: CodeLocation, monkeypatch: pytest.MonkeyPatch
) -> None:
    _run(code_location, location=None)
    assert isinstance(_sensor(code_location), dg.SkipReason)
    monkeypatch.setenv("PM_RUN_TABLE", "another")
    assert isinstance(_sensor(code_location), dg.RunRequest)


@pytest.mark.parametrize("selection", [[names.WAITING_JOBS, names.DISPATCHED_JOBS], [names.DISPATCHED_JOBS]])
def test_materializing_the_assets_by_hand_is_a_dispatch_too(code_location: CodeLocation, selection: list[str]) -> None:
    assets = frozenset(map(dg.AssetKey, selection))
    _run(code_location, job="__ASSET_JOB", asset_selection=assets)
    assert isinstance(_sensor(code_location), dg.SkipReason)
    assert isinstance(_sensor(code_location, "theirs"), dg.RunRequest)


def test_other_assets_are_not_our_business(code_location: CodeLocation) -> None:
    @dg.asset
    def another() -> None: ...

    definitions = dg.Definitions(assets=[another])
    _run(code_location, job="__ASSET_JOB", definitions=definitions, asset_selection=frozenset({dg.AssetKey("another")}))
    assert isinstance(_sensor(code_location), dg.RunRequest)


def test_the_tag_stands_for_the_control_table_and_for_no_secret() -> None:
    url = "postgresql://pm:{}@db.example.com:5432/control"
    before = single_flight({"PM_POSTGRES_URL": url.format("first")})
    assert single_flight({"PM_POSTGRES_URL": url.format("second")}) == before
    others = [
        {"PM_POSTGRES_URL": url.format("first").replace("control", "another")},
        {"PM_POSTGRES_URL": url.format("first"), "PM_RUN_TABLE": "another"},
        {"PM_POSTGRES_URL": url.format("first"), "PM_SCHEMA": "another"},
        {"PM_POSTGRES_URL": "keyvault://vault/one"},
        {"PM_POSTGRES_URL": "keyvault://vault/two"},
        {"PM_POSTGRES_URL": "file:///run/secrets/url"},
        {"PM_POSTGRES_HOST": "db.example.com"},
        {"PGHOST": "db.example.com"},
        {"PM_SECRETS": "keyvault://vault"},
        {},
    ]
    tags = [before, *map(single_flight, others)]
    assert len({next(iter(tag.values())) for tag in tags}) == len(tags)
    assert {tuple(tag) for tag in tags} == {(names.SINGLE_FLIGHT,)}


@pytest.mark.parametrize("url", ["postgresql://a:b@c@d/e", "keyvault://", "no url at all", "\udcff"])
def test_a_code_location_loads_with_whatever_is_set(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    usable = single_flight({})
    assert single_flight({"PM_POSTGRES_URL": url}).keys() == usable.keys()
    monkeypatch.setenv("PM_POSTGRES_URL", url)
    assert names.SINGLE_FLIGHT in build_definitions().resolve_job_def(names.JOB).tags
