"""The calls of the local workspace one by one: refusals, jobs, outputs, older versions, bodies of the wrong shape."""

from __future__ import annotations

import pytest
import requests
from databricks.sdk import WorkspaceClient
from databricks.sdk.core import Config
from databricks.sdk.errors import InvalidParameterValue, PermissionDenied, ResourceDoesNotExist
from databricks.sdk.service.jobs import JobSettings, Task

from pm_dagster.sandbox.workspace import LocalWorkspace


@pytest.fixture
def workspace(running: LocalWorkspace) -> LocalWorkspace:
    running.reset()
    return running


@pytest.fixture
def client(workspace: LocalWorkspace) -> WorkspaceClient:
    return WorkspaceClient(config=Config(host=workspace.host, token=workspace.token, auth_type="pat"))


def test_unknown_things(workspace: LocalWorkspace, client: WorkspaceClient) -> None:
    with pytest.raises(InvalidParameterValue, match=r"^Job 5 does not exist\.$"):
        client.jobs.run_now(5)
    with pytest.raises(ResourceDoesNotExist, match=r"^Run 5 does not exist\.$"):
        client.jobs.get_run(5)
    workspace.switches.set(unknown_run_status=404, unknown_job_status=404)
    for refused in (lambda: client.jobs.get_run(5), lambda: client.jobs.get(5)):
        with pytest.raises(ResourceDoesNotExist):
            refused()
    workspace.state.forbid(5)
    with pytest.raises(PermissionDenied):
        client.jobs.run_now(5)


def test_jobs_are_made_listed_changed_and_deleted(client: WorkspaceClient) -> None:
    ids = [client.jobs.create(name=f"job {n % 2}", tasks=[Task(task_key="a")]).job_id for n in range(25)]
    assert sorted(job.job_id or 0 for job in client.jobs.list()) == sorted(each or 0 for each in ids)
    assert len(list(client.jobs.list(name="JOB 1"))) == 12
    first = ids[0] or 0
    client.jobs.reset(first, JobSettings(name="fresh", max_concurrent_runs=3))
    settings = client.jobs.get(first).settings
    assert settings
    assert (settings.name, settings.max_concurrent_runs, settings.tasks or []) == ("fresh", 3, [])
    client.jobs.update(first, new_settings=JobSettings(max_concurrent_runs=4))
    settings = client.jobs.get(first).settings
    assert settings
    assert (settings.name, settings.max_concurrent_runs) == ("fresh", 4)
    client.jobs.delete(first)
    with pytest.raises(ResourceDoesNotExist):
        client.jobs.get(first)


def test_output_is_kept_by_task_run(workspace: LocalWorkspace, client: WorkspaceClient) -> None:
    workspace.state.add_job("orders", 7, "fail", seconds=0)
    run = client.jobs.get_run(client.jobs.run_now(7).run_id)
    task_run = (run.tasks or [])[0].run_id or 0
    output = client.jobs.get_run_output(task_run)
    assert output.error
    assert output.metadata
    assert output.metadata.run_id == task_run
    assert client.jobs.get_run(task_run).job_run_id == run.run_id
    with pytest.raises(InvalidParameterValue):
        client.jobs.get_run_output(run.run_id or 0)


def test_older_versions_answer_in_their_way(workspace: LocalWorkspace) -> None:
    workspace.state.add_job("orders", 7)
    run = workspace.state.add_run(7, repairs=250)
    head = {"Authorization": f"Bearer {workspace.token}"}
    params: dict[str, str | int] = {"run_id": run.run_id, "include_history": "true"}
    old = requests.get(f"{workspace.host}/api/2.1/jobs/runs/get", params=params, headers=head, timeout=10).json()
    assert len(old["repair_history"]) == 251
    assert "next_page_token" not in old
    assert requests.get(f"{workspace.host}/api/2.1/jobs/list", headers=head, timeout=10).json()["has_more"] is False
    new = requests.get(f"{workspace.host}/api/2.2/jobs/runs/get", params=params, headers=head, timeout=10).json()
    assert len(new["repair_history"]) == 100
    assert new["next_page_token"]
    made = requests.post(f"{workspace.host}/api/2.1/jobs/create", json={"name": "x"}, headers=head, timeout=10).json()
    assert workspace.state.job(made["job_id"]).queue_enabled is False
    gone = requests.get(f"{workspace.host}/api/2.3/jobs/list", headers=head, timeout=10)
    assert gone.status_code == 404
    assert requests.get(f"{workspace.host}/api/2.0/dbfs/list", headers=head, timeout=10).status_code == 404
    assert gone.json()["error_code"] == "ENDPOINT_NOT_FOUND"


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"{",
        b"{}",
        b'{"job_id": "x"}',
        b'{"job_id": true}',
        b'{"job_id": 1.5}',
        b'{"job_id": 9223372036854775808}',
        b'{"job_id": 7, "job_parameters": {"a": 1}}',
        b'{"job_id": 7, "queue": 1}',
        b"[" * 100_000,
    ],
    ids=lambda body: body[:30].decode(),
)
def test_a_body_of_the_wrong_shape_is_refused(workspace: LocalWorkspace, body: bytes) -> None:
    workspace.state.add_job("orders", 7)
    head = {"Authorization": f"Bearer {workspace.token}"}
    answer = requests.post(f"{workspace.host}/api/2.2/jobs/run-now", data=body, headers=head, timeout=10)
    assert answer.status_code == 400
    assert "error_code" in answer.json()
    assert workspace.state.runs() == []
