"""Life cycles, queues, idempotency and lists of the local workspace, through the unmodified SDK."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from databricks.sdk import WorkspaceClient
from databricks.sdk.core import Config
from databricks.sdk.errors import InvalidParameterValue
from databricks.sdk.service.jobs import JobSettings, QueueSettings, RunLifeCycleState, RunResultState

from pm_dagster.sandbox.workspace import LocalWorkspace

CHAIN = [{"task_key": "load", "depends_on": [{"task_key": "extract"}]}, {"task_key": "extract"}]


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 1_760_000_000.0

    def __call__(self) -> float:
        """Tell the time."""
        return self.now


@pytest.fixture(scope="module")
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="module")
def running(clock: Clock) -> Iterator[LocalWorkspace]:
    with LocalWorkspace(clock=clock) as workspace:
        yield workspace


@pytest.fixture
def workspace(running: LocalWorkspace) -> LocalWorkspace:
    running.reset()
    return running


@pytest.fixture
def client(workspace: LocalWorkspace) -> WorkspaceClient:
    return WorkspaceClient(config=Config(host=workspace.host, token=workspace.token, auth_type="pat"))


def started(client: WorkspaceClient, job_id: int, token: str) -> int:
    return int(client.jobs.run_now(job_id, idempotency_token=token).run_id)


def test_a_failing_run(workspace: LocalWorkspace, client: WorkspaceClient, clock: Clock) -> None:
    workspace.state.add_job("orders", 7, ["fail", "succeed"], seconds=10, pending_seconds=5, tasks=CHAIN)
    run_id = client.jobs.run_now(7).run_id
    seen = []
    for _ in range(4):
        run = client.jobs.get_run(run_id, include_history=True)
        assert run.state
        assert run.status
        assert run.status.state
        assert run.state.life_cycle_state
        seen.append((run.state.life_cycle_state.value, run.status.state.value, run.end_time == 0))
        clock.now += 5
    assert seen == [
        ("PENDING", "PENDING", True),
        ("RUNNING", "RUNNING", True),
        ("RUNNING", "RUNNING", True),
        ("INTERNAL_ERROR", "TERMINATED", False),
    ]
    run = client.jobs.get_run(run_id, include_history=True)
    assert run.state
    assert run.state.result_state is RunResultState.FAILED
    assert run.state.state_message == (
        "Task extract failed with message: Workload failed, see run output for details."
        " This caused all downstream tasks to get skipped."
    )
    assert [task.task_key for task in run.tasks or []] == ["extract", "load"]
    assert [item.id for item in run.repair_history or []] == [None]


def test_a_repair_goes_on_under_the_same_run_id(
    workspace: LocalWorkspace, client: WorkspaceClient, clock: Clock
) -> None:
    workspace.state.add_job("orders", 7, ["fail", "succeed"], seconds=10, pending_seconds=5, tasks=CHAIN)
    run_id = client.jobs.run_now(7, job_parameters={"RUN_ID": "1"}).run_id
    clock.now += 20
    wait = client.jobs.repair_run(run_id, rerun_all_failed_tasks=True)
    repair_id = wait.response.repair_id  # type: ignore[attr-defined]  # the SDK leaves it untyped
    again = client.jobs.get_run(run_id, include_history=True)
    assert again.run_id == run_id
    assert again.state
    assert again.state.life_cycle_state is RunLifeCycleState.PENDING
    assert again.state.result_state is None
    assert [item.id for item in again.repair_history or []] == [None, repair_id]
    assert [task.attempt_number for task in again.tasks or []] == [0, 0, 1, 1]
    clock.now += 20
    done = client.jobs.get_run(run_id)
    assert done.state
    assert done.state.result_state is RunResultState.SUCCESS
    assert not done.repair_history
    assert [each.value for each in done.job_parameters or []] == ["1"]


@pytest.mark.parametrize(
    ("outcome", "life", "result"),
    [
        ("succeed", "TERMINATED", "SUCCESS"),
        ("timeout", "TERMINATED", "TIMEDOUT"),
        ("internal_error", "INTERNAL_ERROR", None),
        ("succeed_with_failures", "TERMINATED", "SUCCESS_WITH_FAILURES"),
        ("cancel", "TERMINATED", "CANCELED"),
    ],
)
def test_other_ends(
    workspace: LocalWorkspace, client: WorkspaceClient, outcome: str, life: str, result: str | None
) -> None:
    workspace.state.add_job("orders", 7, outcome, seconds=0)
    state = client.jobs.get_run(client.jobs.run_now(7).run_id).state
    assert state
    assert state.life_cycle_state
    assert state.life_cycle_state.value == life
    assert (state.result_state.value if state.result_state else None) == result


def test_a_token_begins_one_run_for_32_threads(workspace: LocalWorkspace, client: WorkspaceClient) -> None:
    workspace.state.add_job("orders", 7, max_concurrent_runs=1000)
    workspace.state.add_job("other", 8)
    barrier = threading.Barrier(32)

    def start(number: int) -> int:
        barrier.wait()
        return client.jobs.run_now(7, idempotency_token="t" * 64, job_parameters={"n": str(number)}).run_id

    with ThreadPoolExecutor(32) as pool:
        assert len(set(pool.map(start, range(32)))) == 1
    assert workspace.log.count("run-now", effect=True) == 1
    assert started(client, 8, "t" * 64) == workspace.state.runs()[0].run_id
    workspace.switches.set(token_scope="job")
    assert started(client, 8, "t") != workspace.state.runs(7)[0].run_id
    with pytest.raises(InvalidParameterValue):
        client.jobs.run_now(7, idempotency_token="t" * 65)


def test_the_token_of_a_deleted_run(workspace: LocalWorkspace, client: WorkspaceClient) -> None:
    workspace.state.add_job("orders", 7, seconds=0)
    run_id = client.jobs.run_now(7, idempotency_token="a").run_id
    client.jobs.delete_run(run_id)
    with pytest.raises(InvalidParameterValue):
        client.jobs.run_now(7, idempotency_token="a")
    workspace.switches.set(deleted_token="existing")
    assert started(client, 7, "a") == run_id
    workspace.switches.set(deleted_token="new_run")
    assert started(client, 7, "a") != run_id


def test_queue_and_skip(workspace: LocalWorkspace, client: WorkspaceClient, clock: Clock) -> None:
    workspace.state.add_job("orders", 7, seconds=10, queue=False)

    def life(run_id: int) -> str:
        state = client.jobs.get_run(run_id).state
        assert state
        assert state.life_cycle_state
        return state.life_cycle_state.value

    first = client.jobs.run_now(7).run_id
    skipped = client.jobs.run_now(7).run_id
    waiting = [client.jobs.run_now(7, queue=QueueSettings(enabled=True)).run_id for _ in range(2)]
    assert [life(each) for each in (first, skipped, *waiting)] == ["RUNNING", "SKIPPED", "QUEUED", "QUEUED"]
    state = client.jobs.get_run(skipped).state
    assert state
    assert state.result_state is RunResultState.MAXIMUM_CONCURRENT_RUNS_REACHED
    clock.now += 10
    assert [life(each) for each in (first, *waiting)] == ["TERMINATED", "RUNNING", "QUEUED"]
    clock.now += 100
    assert [life(each) for each in waiting] == ["TERMINATED", "TERMINATED"]
    # The second began when the first ended, though nobody looked in between.
    assert workspace.state.run(waiting[1]).last.end == clock.now - 80
    workspace.state.add_job("never", 9, max_concurrent_runs=0)
    assert life(client.jobs.run_now(9).run_id) == "SKIPPED"


def test_a_run_cancelled_in_the_queue_never_begins(workspace: LocalWorkspace, clock: Clock) -> None:
    workspace.state.add_job("orders", 7, seconds=None)
    first, waiting, other = (workspace.state.start_run(7)[0] for _ in range(3))
    workspace.switches.set(cancel_seconds=10)
    workspace.state.cancel(waiting.run_id)
    workspace.state.finish(first.run_id)
    assert [run.last.life for run in (waiting, other)] == ["TERMINATING", "PENDING"]
    clock.now += 10
    assert workspace.state.run(waiting.run_id).last.result == "CANCELED"


def test_a_higher_limit_empties_the_queue(workspace: LocalWorkspace, client: WorkspaceClient) -> None:
    workspace.state.add_job("orders", 7, seconds=None)
    runs = [workspace.state.start_run(7)[0] for _ in range(4)]
    client.jobs.update(7, new_settings=JobSettings(max_concurrent_runs=3))
    assert [run.last.life for run in runs] == ["RUNNING", "PENDING", "PENDING", "QUEUED"]


def test_cancel_takes_a_moment(workspace: LocalWorkspace, client: WorkspaceClient, clock: Clock) -> None:
    workspace.state.add_job("orders", 7, seconds=None)
    run_id = client.jobs.run_now(7).run_id
    client.jobs.cancel_run(run_id)
    client.jobs.cancel_run(run_id)
    state = client.jobs.get_run(run_id).state
    assert state
    assert state.life_cycle_state is RunLifeCycleState.TERMINATING
    clock.now += 1
    state = client.jobs.get_run(run_id).state
    assert state
    assert state.result_state is RunResultState.CANCELED
    assert state.user_cancelled_or_timedout
    assert workspace.log.count("runs/cancel", effect=True) == 1


def test_list_runs_filters_and_pages(workspace: LocalWorkspace, client: WorkspaceClient, clock: Clock) -> None:
    workspace.state.add_job("orders", 7, seconds=100, max_concurrent_runs=1000)
    workspace.state.add_job("other", 8, seconds=0)
    started = []
    for number in range(60):
        started.append(client.jobs.run_now(7, job_parameters={"n": str(number)}).run_id)
        clock.now += 1
    client.jobs.run_now(8)
    assert [run.run_id for run in client.jobs.list_runs(job_id=7)] == started[::-1]
    assert len(list(client.jobs.list_runs(active_only=True))) == 60
    assert [run.job_id for run in client.jobs.list_runs(completed_only=True)] == [8]
    late = list(client.jobs.list_runs(job_id=7, start_time_from=int((clock.now - 10) * 1000)))
    assert [run.run_id for run in late] == started[:-11:-1]
    parameters = late[0].job_parameters or []
    assert [(each.name, each.value) for each in parameters] == [("n", "59")]
    assert list(client.jobs.list_runs(job_id=99)) == []
    expanded = next(iter(client.jobs.list_runs(job_id=7, expand_tasks=True)))
    assert [task.task_key for task in expanded.tasks or []] == ["main"]
    with pytest.raises(InvalidParameterValue):
        list(client.jobs.list_runs(active_only=True, completed_only=True))
