"""Both branches at once in one process, and each alone where it has to be; what the UI says of it."""

import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg
import pandas as pd
import pytest

from pm_dagster.definitions import build_definitions
from pm_dagster.dispatch.model import Call
from pm_dagster.errors import AuthenticationFailed, ConfigurationError
from pm_dagster.orchestration import names
from pm_dagster.orchestration.assets import (
    fetch_latest_repair_ids,
    mark_scheduled,
    partition_waiting_jobs,
    repair_job_runs,
    trigger_new_jobs,
)
from pm_dagster.orchestration.execution import EventsByOp
from pm_dagster.orchestration.frames import waiting_frame
from pm_dagster.orchestration.resources import ControlTable, DispatchSession, dispatch_session
from pm_dagster_tests.fakes.runs import Fault, InMemoryRuns, InMemoryWorkspace
from pm_dagster_tests.ledger.postgres_control_table import eventually
from pm_dagster_tests.orchestration.conftest import CodeLocation, process_manager_job
from pm_dagster_tests.orchestration.deployment import JOB, MODULE, Deployment, kill_all

_LONGEST_SECONDS = 60.0
_SENDING = ("trigger_new_jobs", "fetch_latest_repair_ids", "repair_job_runs")
_REPAIR = """
INSERT INTO mm_run_plc (cntrt_id, run_sttus_name, wkf_job_id, wkf_job_run_id, file_name, rgstr_file_time)
VALUES (7, 'WAITING', %s, %s, 'file.csv', now()) RETURNING run_id"""

_CONNECTED = """
SELECT count(*) FROM pg_stat_activity WHERE application_name = 'process_manager' AND datname = current_database()"""


class _OneAfterTheOther(InMemoryRuns):
    """A workspace that answers calls of a kind once as many calls of another kind were answered."""

    def __init__(self, held: Call, until: Call, number: int) -> None:
        super().__init__()
        self._held = held
        self._until = until
        self._missing = number
        self._answered = threading.Event()

    def start(self, job_id: int, parameters: Mapping[str, str], idempotency_token: str) -> int:
        self._wait(Call.RUN_NOW)
        return self._note(Call.RUN_NOW, super().start(job_id, parameters, idempotency_token))

    def repair(self, run_id: int, parameters: Mapping[str, str], latest_repair_id: int | None) -> int:
        self._wait(Call.REPAIR)
        return self._note(Call.REPAIR, super().repair(run_id, parameters, latest_repair_id))

    def _wait(self, call: Call) -> None:
        assert call is not self._held or self._answered.wait(_LONGEST_SECONDS), "the other branch is not sent"

    def _note(self, call: Call, answer: int) -> int:
        if call is self._until:
            with self._lock:
                self._missing -= 1
                if not self._missing:
                    self._answered.set()
        return answer


def _fill(code_location: CodeLocation, new: int = 2, repairs: int = 2) -> None:
    for number in range(1, new + 1):
        code_location.database.add(number)
    for number in range(11, 11 + repairs):
        code_location.database.add(number, previous_run_id=code_location.runs.failed_run(repairs=1))


def _counts(code_location: CodeLocation) -> tuple[int, int, int]:
    count = code_location.runs.count
    return count(Call.RUN_NOW), count(Call.GET_RUN), count(Call.REPAIR)


def _op(step_key: object) -> str:
    return str(step_key).rpartition(".")[2]


def _metadata(result: dg.ExecuteInProcessResult) -> dict[str, Mapping[str, Any]]:
    """The metadata of the ops that send, as plain values."""
    found: dict[str, Mapping[str, Any]] = {}
    for event in result.all_events:
        if event.event_type is dg.DagsterEventType.STEP_OUTPUT and _op(event.step_key) in _SENDING:
            metadata = event.step_output_data.metadata
            if metadata:
                found[_op(event.step_key)] = {name: value.value for name, value in metadata.items()}
    return found


@pytest.mark.parametrize("held", [Call.RUN_NOW, Call.REPAIR])
def test_a_branch_is_sent_while_the_op_of_the_other_awaits(code_location: CodeLocation, held: Call) -> None:
    other = Call.REPAIR if held is Call.RUN_NOW else Call.RUN_NOW
    code_location.runs = _OneAfterTheOther(held, other, 2)
    _fill(code_location)
    result = code_location.dispatch()
    assert result.success
    assert set(code_location.database.statuses().values()) == {"SCHEDULED"}
    assert _counts(code_location) == (2, 2, 2)
    metadata = _metadata(result)
    assert {op: each["API calls"] for op, each in metadata.items()} == dict.fromkeys(_SENDING, 2)
    assert all(each["both branches at once"] for each in metadata.values())
    whole = code_location.metadata(result)
    assert (whole["API calls"], whole["new/accepted"], whole["repair/accepted"]) == (6, 2, 2)


@dg.op
def read_rows(control_table: dg.ResourceParam[ControlTable]) -> pd.DataFrame:
    return waiting_frame(control_table.control.waiting(100))


def _in_order(code_location: CodeLocation, *ops: str) -> dg.JobDefinition:
    """The graph with its ops in this order, where it is free."""
    hardcoded = dg.ResourceDefinition.hardcoded_resource
    resources = {
        "control_table": hardcoded(code_location.table()),
        "databricks": hardcoded(InMemoryWorkspace(code_location.runs)),
        "session": dispatch_session,
    }

    def ranked(op: dg.OpDefinition) -> Any:  # noqa: ANN401 Dagster's own
        return op.tag({"dagster/priority": str(-ops.index(op.name))})

    @dg.job(resource_defs=resources, executor_def=dg.in_process_executor)
    def in_order() -> None:
        rows = read_rows()
        new, repair = partition_waiting_jobs(rows)
        targets, settled = ranked(fetch_latest_repair_ids)(repair)
        repaired = ranked(repair_job_runs)(targets)
        mark_scheduled(rows, new, repair, [ranked(trigger_new_jobs)(new), settled, repaired])

    return in_order


def _run(code_location: CodeLocation, *ops: str) -> dg.ExecuteInProcessResult:
    result = _in_order(code_location, *ops).execute_in_process(instance=code_location.instance)
    assert result.success
    order = [_op(e.step_key) for e in result.all_events if e.event_type is dg.DagsterEventType.STEP_START]
    assert [op for op in order if op in _SENDING] == list(ops)
    return result


def _log(code_location: CodeLocation, result: dg.ExecuteInProcessResult) -> list[tuple[str, str]]:
    """The lines of the run's log, each with its op."""
    logs = code_location.instance.all_logs(result.run_id)
    return [(_op(entry.step_key), entry.user_message) for entry in logs if not entry.is_dagster_event]


def test_a_selection_of_ops_sends_only_the_rows_of_these(code_location: CodeLocation) -> None:
    _fill(code_location)
    job = _in_order(code_location, *_SENDING)
    some = ["read_rows", "partition_waiting_jobs", "trigger_new_jobs"]
    assert job.execute_in_process(instance=code_location.instance, op_selection=some).success
    assert _counts(code_location) == (2, 0, 0)


def test_an_op_says_when_its_calls_were_made_although_it_had_not_begun(code_location: CodeLocation) -> None:
    code_location.runs = _OneAfterTheOther(Call.RUN_NOW, Call.REPAIR, 2)
    _fill(code_location)
    result = _run(code_location, *_SENDING)
    times = _metadata(result)["repair_job_runs"]
    (began,) = [
        entry.timestamp
        for entry in code_location.instance.all_logs(result.run_id, of_type=dg.DagsterEventType.STEP_START)
        if _op(entry.step_key) == "repair_job_runs"
    ]
    assert times["first API call"] <= times["last API call"] < began
    (line,) = [text for op, text in _log(code_location, result) if text.startswith("calls of a step stage=repair ")]
    assert " calls=2 first=20" in line
    assert line.endswith(" both_branches_at_once=True")


@pytest.mark.parametrize(
    "ops",
    [
        ("trigger_new_jobs", "fetch_latest_repair_ids", "repair_job_runs"),
        ("fetch_latest_repair_ids", "trigger_new_jobs", "repair_job_runs"),
        ("fetch_latest_repair_ids", "repair_job_runs", "trigger_new_jobs"),
    ],
)
def test_the_order_of_the_ops_is_of_no_account(code_location: CodeLocation, ops: tuple[str, ...]) -> None:
    held, until = (Call.RUN_NOW, Call.REPAIR) if ops[0] == "trigger_new_jobs" else (Call.REPAIR, Call.RUN_NOW)
    code_location.runs = _OneAfterTheOther(held, until, 2)
    _fill(code_location)
    _run(code_location, *ops)
    assert set(code_location.database.statuses().values()) == {"SCHEDULED"}
    assert _counts(code_location) == (2, 2, 2)


def test_what_is_logged_about_a_row_stands_under_the_op_that_sends_it(code_location: CodeLocation) -> None:
    code_location.runs = _OneAfterTheOther(Call.RUN_NOW, Call.REPAIR, 1)
    code_location.with_settings(missing_run="fail")
    _fill(code_location, repairs=1)
    code_location.database.add(12, previous_run_id=404)
    code_location.database.add(3, job_id=99)
    result = _run(code_location, *_SENDING)
    log = _log(code_location, result)
    ((repair_op, repair),) = [(op, text) for op, text in log if text.startswith("row quarantined run_id=12 ")]
    ((new_op, new),) = [(op, text) for op, text in log if text.startswith("row quarantined run_id=3 ")]
    assert (new_op, repair_op) == ("trigger_new_jobs", "fetch_latest_repair_ids")
    assert " at=20" in repair, "it was logged before its op began"
    assert repair.endswith("Z")
    assert " at=20" not in new
    assert len([text for _, text in log if text.startswith("sending begun ")]) == 1


_slow_began = threading.Event()


class _Slow(InMemoryRuns):
    def start(self, job_id: int, parameters: Mapping[str, str], idempotency_token: str) -> int:
        _slow_began.set()
        time.sleep(0.5)
        return super().start(job_id, parameters, idempotency_token)


@dg.op
def begin_only(session: dg.ResourceParam[DispatchSession], new: pd.DataFrame, repair: pd.DataFrame) -> None:
    """Await nothing."""
    assert len(new) + len(repair) == 12
    session.sender(_SENDING)
    assert _slow_began.wait(_LONGEST_SECONDS)


def test_a_run_that_ends_while_rows_are_sent_ends_the_sending_before_its_control_table(
    code_location: CodeLocation,
) -> None:
    code_location.runs = _Slow()
    code_location.with_settings(concurrency=2)
    _fill(code_location, new=10)
    at_end: list[list[str]] = []

    @dg.resource
    def control_table(_context: dg.InitResourceContext) -> Iterator[ControlTable]:
        yield code_location.table()
        at_end.append([thread.name for thread in threading.enumerate() if thread.name == "sender"])

    databricks = dg.ResourceDefinition.hardcoded_resource(InMemoryWorkspace(code_location.runs))
    resources = {"control_table": control_table, "databricks": databricks, "session": dispatch_session}

    @dg.job(resource_defs=resources, executor_def=dg.in_process_executor)
    def awaits_nothing() -> None:
        begin_only(*partition_waiting_jobs(read_rows()))

    result = awaits_nothing.execute_in_process(instance=code_location.instance)
    assert result.success
    assert at_end == [[]]
    assert 0 < code_location.runs.count(Call.RUN_NOW) < 10
    records = list(code_location.database.ledger.values())
    assert "SENDING" not in {record.entry.state.value for record in records}
    assert sum(record.accepted_run_id is not None for record in records) == len(code_location.runs.runs) - 2
    assert any(text.startswith("sending is to end open=") for _, text in _log(code_location, result))
    assert any(text.startswith("sending ended early ") and " at=20" in text for _, text in _log(code_location, result))
    assert not any(isinstance(handler, EventsByOp) for handler in logging.getLogger("pm_dagster").handlers)


@pytest.mark.parametrize("call", [Call.RUN_NOW, Call.GET_RUN, Call.REPAIR])
def test_each_op_alone_is_re_executed_from_failure(stored: CodeLocation, call: Call) -> None:
    _fill(stored)
    stored.with_settings(concurrency=1)
    stored.runs.faults[call] = [Fault(AuthenticationFailed("expired", status=401))]
    job = dg.reconstructable(process_manager_job)
    with dg.execute_job(job, stored.instance) as first:
        failures = [_op(event.step_key) for event in first.all_events if event.is_step_failure]
    of = {Call.RUN_NOW: _SENDING[0], Call.GET_RUN: _SENDING[1], Call.REPAIR: _SENDING[2]}
    assert failures == [of[call]]
    stored.database.alive.clear()
    options = dg.ReexecutionOptions.from_failure(first.run_id, stored.instance)
    with dg.execute_job(job, stored.instance, reexecution_options=options) as again:
        assert again.success
    assert set(stored.database.statuses().values()) == {"SCHEDULED"}
    assert stored.runs.count(call) == 3
    assert stored.runs.count(Call.RUN_NOW) == 2 + (call is Call.RUN_NOW)
    assert stored.runs.count(Call.REPAIR) == 2 + (call is Call.REPAIR)
    assert len(stored.runs.runs) == 4


@pytest.mark.parametrize("op", ["trigger_new_jobs", "fetch_latest_repair_ids"])
def test_a_run_of_some_steps_sends_only_the_rows_of_these(stored: CodeLocation, op: str) -> None:
    _fill(stored)
    stored.faults["claim"] = [ConfigurationError("the column is gone")]
    job = dg.reconstructable(process_manager_job)
    with dg.execute_job(job, stored.instance) as first:
        assert not first.success
    stored.database.alive.clear()
    steps = [f"dispatched_jobs.{name}" for name in ("partition_waiting_jobs", op)]
    options = dg.ReexecutionOptions(first.run_id, step_selection=steps)
    with dg.execute_job(job, stored.instance, reexecution_options=options) as some:
        assert some.success
    assert _counts(stored) == ((2, 0, 0) if op == "trigger_new_jobs" else (0, 2, 0))
    stored.database.alive.clear()
    assert stored.dispatch().success
    assert set(stored.database.statuses().values()) == {"SCHEDULED"}
    assert (stored.runs.count(Call.RUN_NOW), stored.runs.count(Call.REPAIR)) == (2, 2)


def _add_repair(deployment: Deployment) -> int:
    """A row whose failed run is to be repaired; gives the run."""
    run_id = deployment.workspace.state.add_run(JOB, outcome="fail").run_id
    deployment.sql(_REPAIR, (JOB, run_id))
    return run_id


def _has_one_run_or_repair_each(deployment: Deployment, new: int, repaired: list[int]) -> None:
    assert {status for (status,) in deployment.sql("SELECT run_sttus_name FROM mm_run_plc")} == {"SCHEDULED"}
    state = deployment.workspace.state
    assert len(state.runs()) == new + len(repaired)
    assert [len(state.run(run_id).attempts) for run_id in repaired] == [2] * len(repaired)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_cancelled_run_records_what_is_under_way_in_both_branches_and_leaves_the_rest(
    deployment: Deployment, number: signal.Signals
) -> None:
    rows = [deployment.add() for _ in range(20)]
    repaired = [_add_repair(deployment) for _ in range(10)]
    for endpoint in ("run-now", "runs/repair"):
        deployment.workspace.faults.add(endpoint, "hang", seconds=1.0, count=100)
    slow = {"PM_RATE_RUN_NOW": "2", "PM_RATE_REPAIR": "2"}
    count = deployment.workspace.log.count
    process = subprocess.Popen(
        [sys.executable, "-m", "dagster", "job", "execute", *MODULE, "-j", names.JOB],
        env={**deployment.environment, **slow},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        eventually(lambda: min(count("run-now"), count("runs/repair")) > 0, "both branches are under way")
        (run,) = deployment.runs()
        with deployment.instance() as instance:
            # What the UI's button does before the signal.
            instance.report_run_canceling(run.dagster_run)
        process.send_signal(number)
        asked = time.monotonic()
        assert process.wait(_LONGEST_SECONDS) != 0
        assert time.monotonic() - asked < 20.0
    finally:
        kill_all(process)
    (run,) = deployment.runs()
    assert run.dagster_run.status is dg.DagsterRunStatus.CANCELED
    states = {state for (state,) in deployment.sql("SELECT DISTINCT state FROM process_manager.entry")}
    assert "SENDING" not in states
    assert deployment.sql("SELECT count(*) FROM process_manager.dispatcher WHERE ended_at IS NULL") == [(0,)]
    assert count("run-now") < len(rows)
    deployment.workspace.faults.clear()
    done = deployment.dagster("job", "execute", *MODULE, "-j", names.JOB)
    assert done.returncode == 0, done.stderr[-4000:]
    _has_one_run_or_repair_each(deployment, len(rows), repaired)
    assert (count("run-now"), count("runs/repair")) == (len(rows), len(repaired))


def several_processes() -> dg.JobDefinition:
    """The job with a process for each step."""
    found = build_definitions()
    job = dg.define_asset_job("several_processes", "*dispatched_jobs", executor_def=dg.multiprocess_executor)
    definitions = dg.Definitions(assets=found.assets, resources=found.resources, jobs=[job])
    return definitions.resolve_job_def("several_processes")


@pytest.mark.slow
def test_with_a_process_for_each_step_every_op_sends_its_own_rows(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [deployment.add() for _ in range(3)]
    repaired = [_add_repair(deployment) for _ in range(2)]
    for name, value in deployment.environment.items():
        monkeypatch.setenv(name, value)
    with (
        deployment.instance() as instance,
        dg.execute_job(dg.reconstructable(several_processes), instance) as result,
    ):
        assert result.success
        outputs = [event for event in result.all_events if event.event_type is dg.DagsterEventType.STEP_OUTPUT]
    told = {_op(e.step_key): e.step_output_data.metadata for e in outputs if e.step_output_data.metadata}
    assert {told[op]["both branches at once"].value for op in _SENDING} == {False}
    _has_one_run_or_repair_each(deployment, len(rows), repaired)


@pytest.mark.slow
def test_a_run_killed_while_both_branches_are_under_way_is_continued(deployment: Deployment) -> None:
    rows = [deployment.add() for _ in range(3)]
    repaired = [_add_repair(deployment) for _ in range(3)]
    for endpoint in ("run-now", "runs/repair"):
        deployment.workspace.faults.add(endpoint, "hang", "after", seconds=20.0, drop=True, count=3)
    process = subprocess.Popen(
        [sys.executable, "-m", "dagster", "job", "execute", *MODULE, "-j", names.JOB],
        env=deployment.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    state = deployment.workspace.state
    try:
        eventually(
            lambda: len(state.runs()) == 6 and all(len(state.run(run_id).attempts) == 2 for run_id in repaired),
            "the calls of both branches have taken effect",
        )
        assert deployment.sql("SELECT count(*) FROM process_manager.entry WHERE state = 'SENDING'") == [(6,)]
    finally:
        kill_all(process)
    eventually(lambda: deployment.sql(_CONNECTED) == [(0,)], "the server forgets the connection of the dead")
    done = deployment.dagster("job", "execute", *MODULE, "-j", names.JOB)
    assert done.returncode == 0, done.stderr[-4000:]
    _has_one_run_or_repair_each(deployment, len(rows), repaired)
