"""Repairs in the local workspace: compare-and-set, what reruns, the history and its ways to lag."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from databricks.sdk import WorkspaceClient
from databricks.sdk.core import Config
from databricks.sdk.errors import BadRequest, InvalidParameterValue

from pm_dagster.sandbox.workspace import LocalWorkspace

NEEDS_ID = "The latest repair ID needs to be provided in order to create a new repair"


@pytest.fixture
def workspace(running: LocalWorkspace) -> LocalWorkspace:
    running.reset()
    running.state.add_job("orders", 7, "fail", seconds=0, max_concurrent_runs=10)
    return running


@pytest.fixture
def client(workspace: LocalWorkspace) -> WorkspaceClient:
    return WorkspaceClient(config=Config(host=workspace.host, token=workspace.token, auth_type="pat"))


def repair(client: WorkspaceClient, run_id: int, latest: int | None = None) -> int:
    wait = client.jobs.repair_run(run_id, rerun_all_failed_tasks=True, latest_repair_id=latest)
    return int(wait.response.repair_id)  # type: ignore[attr-defined]  # the SDK leaves it untyped


def test_history_of_250_repairs_comes_in_pages(workspace: LocalWorkspace, client: WorkspaceClient) -> None:
    run = workspace.state.add_run(7, run_id=4711, repairs=250)
    history = client.jobs.get_run(4711, include_history=True).repair_history or []
    assert [item.id for item in history] == [None, *(each.repair_id for each in run.attempts[1:])]
    assert workspace.log.count("runs/get") == 3
    assert repair(client, 4711, run.latest_repair_id) > (run.attempts[-2].repair_id or 0)


def test_latest_repair_id_is_a_compare_and_set(client: WorkspaceClient) -> None:
    run_id = client.jobs.run_now(7).run_id
    first = repair(client, run_id)
    with pytest.raises(InvalidParameterValue) as missing:
        repair(client, run_id)
    assert str(missing.value) == NEEDS_ID
    second = repair(client, run_id, first)
    with pytest.raises(InvalidParameterValue):
        repair(client, run_id, first)
    assert repair(client, run_id, second) not in (first, second)


def test_of_many_repairs_at_once_one_wins(workspace: LocalWorkspace, client: WorkspaceClient) -> None:
    run = workspace.state.add_run(7, repairs=3)

    def one(_: int) -> bool:
        try:
            repair(client, run.run_id, run.attempts[3].repair_id)
        except InvalidParameterValue:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(one, range(16))) == 1
    assert workspace.log.count("runs/repair", effect=True) == 1


def test_an_active_run_is_not_repaired(workspace: LocalWorkspace, client: WorkspaceClient) -> None:
    workspace.state.add_job("long", 8, seconds=None)
    run_id = client.jobs.run_now(8).run_id
    with pytest.raises(InvalidParameterValue, match="in progress"):
        repair(client, run_id)
    workspace.switches.set(repair_refusal_code="INVALID_STATE")
    for status in (400, 409):
        workspace.switches.set(repair_refusal_status=status)
        # SDK 0.30 has no class for this error_code.
        with pytest.raises(OSError, match="in progress") as refused:
            repair(client, run_id)
        assert getattr(refused.value, "error_code", None) == "INVALID_STATE"
        assert workspace.log.entries("runs/repair")[-1].status == status
    workspace.state.finish(run_id, "fail")
    repair(client, run_id)


def test_what_reruns(workspace: LocalWorkspace, client: WorkspaceClient) -> None:
    tasks = [{"task_key": "a"}, {"task_key": "b", "depends_on": [{"task_key": "a"}]}, {"task_key": "c"}]
    workspace.state.add_job("chain", 8, ["fail", "succeed"], seconds=0, tasks=tasks)

    def rerun(**chosen: object) -> list[str]:
        run_id = client.jobs.run_now(8).run_id
        client.jobs.repair_run(run_id, **chosen)  # type: ignore[arg-type]
        return [task.task_key for task in workspace.state.run(run_id).last.tasks]

    assert rerun(rerun_all_failed_tasks=True) == ["a", "b"]
    assert rerun(rerun_tasks=["a"]) == ["a"]
    assert rerun(rerun_tasks=["a"], rerun_dependent_tasks=True) == ["a", "b"]
    for wrong in ({"rerun_tasks": ["a"], "rerun_all_failed_tasks": True}, {}, {"rerun_tasks": ["z"]}):
        with pytest.raises(InvalidParameterValue):
            rerun(**wrong)


@pytest.mark.parametrize(("switch", "outcome"), [("repair_of_success", "succeed"), ("first_repair_with_id", "fail")])
def test_first_repairs_that_may_or_may_not_work(
    workspace: LocalWorkspace, client: WorkspaceClient, switch: str, outcome: str
) -> None:
    latest = 5 if switch == "first_repair_with_id" else None
    workspace.switches.set(**{switch: "refuse"})
    with pytest.raises(BadRequest):
        repair(client, workspace.state.add_run(7, outcome=outcome).run_id, latest)
    workspace.switches.set(**{switch: "ignore" if latest else "accept"})
    repair(client, workspace.state.add_run(7, outcome=outcome).run_id, latest)


def test_a_repair_at_the_limit(workspace: LocalWorkspace, client: WorkspaceClient) -> None:
    workspace.state.add_job("narrow", 8, seconds=None)
    client.jobs.run_now(8)
    lives = {}
    for choice in ("queue", "start"):
        workspace.switches.set(repair_at_limit=choice)
        run = workspace.state.add_run(8)
        repair(client, run.run_id)
        lives[choice] = workspace.state.run(run.run_id).last.life
    assert lives == {"queue": "QUEUED", "start": "RUNNING"}
    workspace.switches.set(repair_at_limit="refuse")
    with pytest.raises(InvalidParameterValue):
        repair(client, workspace.state.add_run(8).run_id)


def test_a_skipped_run(workspace: LocalWorkspace, client: WorkspaceClient) -> None:
    workspace.state.add_job("never", 8, max_concurrent_runs=0)
    run_id = client.jobs.run_now(8).run_id
    with pytest.raises(InvalidParameterValue):
        repair(client, run_id)


def test_a_repair_shows_late(workspace: LocalWorkspace, client: WorkspaceClient) -> None:
    workspace.state.add_job("long", 8, seconds=None, max_concurrent_runs=9)
    for scope in ("history", "run"):
        workspace.switches.set(history_lag_reads=2, stale_scope=scope)
        run_id = workspace.state.add_run(8).run_id
        repair(client, run_id)
        reads = [client.jobs.get_run(run_id, include_history=True) for _ in range(3)]
        assert [len(run.repair_history or []) for run in reads] == [1, 1, 2]
        lives = [run.state.life_cycle_state.value for run in reads if run.state and run.state.life_cycle_state]
        early = "RUNNING" if scope == "history" else "INTERNAL_ERROR"
        assert lives == [early, early, "RUNNING"]


def test_strange_histories_and_states(workspace: LocalWorkspace, client: WorkspaceClient) -> None:
    run_id = workspace.state.add_run(7).run_id
    workspace.switches.set(history_missing=True, unknown_states=True)
    run = client.jobs.get_run(run_id, include_history=True)
    assert not run.repair_history
    assert run.state
    assert run.state.life_cycle_state is None
    workspace.switches.set(history_missing=False, original_has_id=True, unknown_states=False)
    run = client.jobs.get_run(run_id, include_history=True)
    assert [item.id for item in run.repair_history or []] == [run_id]


def test_switches_refuse_what_they_do_not_know(workspace: LocalWorkspace) -> None:
    for wrong in ({"nonsense": 1}, {"token_scope": "world"}, {"history_lag_reads": -1}, {"cancel_seconds": "x"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            workspace.switches.set(**wrong)
    assert all(each["about"] for each in workspace.switches.describe().values())
