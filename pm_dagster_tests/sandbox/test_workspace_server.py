"""The local workspace as a server: login, pages, control calls, a process of its own, its state file."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests
from databricks.sdk import WorkspaceClient
from databricks.sdk.core import Config
from databricks.sdk.errors import Unauthenticated

from pm_dagster.sandbox.workspace import LocalWorkspace
from pm_dagster.sandbox.workspace.memory import StateFile
from pm_dagster.sandbox.workspace.server import NotLoopback
from pm_dagster.sandbox.workspace.state import WorkspaceState

EVIL = "<script>alert('x')</script>"


@pytest.fixture
def workspace(running: LocalWorkspace) -> LocalWorkspace:
    running.reset()
    running.state.add_job("orders", 7, ["fail", "succeed"], seconds=0)
    return running


def head(workspace: LocalWorkspace) -> dict[str, str]:
    return {"Authorization": f"Bearer {workspace.token}"}


def steer(workspace: LocalWorkspace, path: str, **body: object) -> requests.Response:
    return requests.post(f"{workspace.host}/sandbox/{path}", json=body, headers=head(workspace), timeout=10)


def look(workspace: LocalWorkspace, path: str) -> dict[str, object]:
    answer = requests.get(f"{workspace.host}/sandbox/{path}", headers=head(workspace), timeout=10)
    assert answer.status_code == 200
    return dict(answer.json())


def test_a_wrong_token_is_refused(workspace: LocalWorkspace) -> None:
    client = WorkspaceClient(config=Config(host=workspace.host, token="wrong", auth_type="pat"))
    with pytest.raises(Unauthenticated):
        client.jobs.run_now(7)
    assert requests.get(f"{workspace.host}/sandbox/jobs", timeout=10).status_code == 401
    assert workspace.state.runs() == []


def test_a_service_principal_logs_in(workspace: LocalWorkspace) -> None:
    def login(secret: str) -> WorkspaceClient:
        return WorkspaceClient(
            host=workspace.host, auth_type="oauth-m2m", client_id=workspace.client_id, client_secret=secret
        )

    client = login(workspace.client_secret)
    client.jobs.run_now(7)
    assert client.current_user.me().user_name
    assert client.get_workspace_id() > 0
    workspace.tokens.revoke_issued()
    with pytest.raises(Unauthenticated):
        client.jobs.run_now(7)
    with pytest.raises(ValueError, match="invalid_client"):
        login("wrong").jobs.run_now(7)


def test_the_log_holds_no_secret(workspace: LocalWorkspace) -> None:
    requests.post(
        f"{workspace.host}/oidc/v1/token",
        data={"grant_type": "client_credentials", "client_id": workspace.client_id, "client_secret": workspace.token},
        timeout=10,
    ).raise_for_status()
    requests.get(f"{workspace.host}/api/2.2/jobs/list", headers=head(workspace), timeout=10)
    text = requests.get(f"{workspace.host}/sandbox/log", headers=head(workspace), timeout=10).text
    assert workspace.token not in text
    assert "jobs/list" in text


def test_pages(workspace: LocalWorkspace) -> None:
    workspace.state.add_job(EVIL, 8, "fail", seconds=0)
    client = WorkspaceClient(config=Config(host=workspace.host, token=workspace.token, auth_type="pat"))
    run_id = client.jobs.run_now(8, job_parameters={EVIL: EVIL}).run_id
    client.jobs.repair_run(run_id, rerun_all_failed_tasks=True)
    before = workspace.state.runs()
    for path in ("/", "/jobs/8", f"/jobs/8/runs/{run_id}"):
        page = requests.get(workspace.host + path, timeout=10)
        assert page.status_code == 200
        assert page.headers["content-type"].startswith("text/html")
        assert EVIL not in page.text
        assert "&lt;script&gt;" in page.text
        assert str(run_id) in page.text
        assert "default-src 'none'" in page.headers["content-security-policy"]
    repair_id = workspace.state.run(run_id).latest_repair_id
    assert f"repair {repair_id}" in requests.get(f"{workspace.host}/jobs/8/runs/{run_id}", timeout=10).text
    assert workspace.state.runs() == before
    assert requests.get(f"{workspace.host}/jobs/8/runs/1", timeout=10).status_code == 404
    url = client.jobs.get_run(run_id).run_page_url
    assert url
    assert url.startswith(workspace.host)
    assert url.endswith(f"#job/8/run/{run_id}")
    workspace.switches.set(run_page_url="path")
    path_url = client.jobs.get_run(run_id).run_page_url
    assert path_url
    assert requests.get(path_url, timeout=10).status_code == 200


def test_only_loopback_and_only_by_its_name(workspace: LocalWorkspace) -> None:
    for address in ("0.0.0.0", "192.0.2.1", "::"):  # noqa: S104  # refused, which is the point
        with pytest.raises(NotLoopback):
            LocalWorkspace(address=address)
    assert requests.get(workspace.host, headers={"Host": "evil.example"}, timeout=10).status_code == 400


def test_control_calls(workspace: LocalWorkspace) -> None:
    assert steer(workspace, "jobs", name="a", job_id=9, outcome="fail", seconds=0, queue=False).json()["job_id"] == 9
    made = steer(workspace, "runs", job_id=9, run_id=55, outcome="fail", repairs=3).json()
    assert made["run_id"] == 55
    assert made["latest_repair_id"] == workspace.state.run(55).latest_repair_id
    steer(workspace, "faults", endpoint="run-now", kind="reset", when="after", count=2)
    assert workspace.faults.rules()[0]["count"] == 2
    steer(workspace, "faults/clear")
    assert look(workspace, "faults") == {"faults": []}
    assert steer(workspace, "limits", preset="documented", retry_after=2).json()["rates"]["runs/repair"] == 5
    assert steer(workspace, "switches", unknown_run_status=404).status_code == 200
    assert workspace.switches.unknown_run_status == 404
    assert steer(workspace, "runs/delete", run_id=55).status_code == 200
    assert steer(workspace, "runs/delete", run_id=55).status_code == 404
    assert steer(workspace, "jobs/forbid", job_id=9).status_code == 200
    assert steer(workspace, "jobs/delete", job_id=9).status_code == 403
    assert steer(workspace, "jobs/delete", job_id=7).status_code == 200
    assert requests.get(f"{workspace.host}/sandbox/reset", headers=head(workspace), timeout=10).status_code == 405
    assert steer(workspace, "reset").status_code == 200
    assert workspace.state.jobs() == []
    assert look(workspace, "log") == {"requests": []}


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        ("jobs", {"nope": 1}),
        ("jobs", {"name": "x", "job_id": "y"}),
        ("jobs", {"name": "x", "seconds": "y"}),
        ("jobs", {"name": "x", "outcome": "explode"}),
        ("runs", {"job_id": 7, "repairs": "y"}),
        ("faults", {"endpoint": "x", "kind": "y"}),
        ("faults", {"endpoint": "x", "kind": "fin", "skip": "y"}),
        ("limits", {"rates": {"get": 0}}),
        ("switches", {"x": 1}),
    ],
)
def test_a_control_call_that_makes_no_sense(workspace: LocalWorkspace, path: str, wrong: dict[str, object]) -> None:
    assert steer(workspace, path, **wrong).status_code == 400


def test_held_runs_are_finished_by_hand(workspace: LocalWorkspace) -> None:
    workspace.state.add_job("held", 8, seconds=None)
    run, _ = workspace.state.start_run(8)
    assert steer(workspace, "runs/finish", run_id=run.run_id, outcome="fail").status_code == 200
    assert workspace.state.run(run.run_id).last.result == "FAILED"
    assert steer(workspace, "runs/finish", run_id=run.run_id).status_code == 400


def test_state_survives_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    with LocalWorkspace(state_file=file) as first:
        first.state.add_job("orders", 7, "fail", seconds=None)
        run, _ = first.state.start_run(7, {"a": "b"}, "token")
        queued, _ = first.state.start_run(7)
        past = first.state.add_run(7, repairs=2)
        gone = first.state.add_run(7)
        first.state.delete_run(gone.run_id)
    # As a crash in the middle of a write leaves it.
    with file.open("a") as stream:
        stream.write('{"job": {"job_id"')
    with LocalWorkspace(state_file=file) as second:
        assert [each.run_id for each in second.state.runs()] == [queued.run_id, run.run_id, past.run_id]
        assert second.state.run(past.run_id) == past
        assert second.state.start_run(7, {}, "token") == (second.state.run(run.run_id), False)
        second.state.finish(run.run_id)
        assert second.state.run(queued.run_id).last.life == "RUNNING"
        assert second.state.start_run(7)[0].run_id > queued.run_id


def test_the_state_file_does_not_grow_for_ever(tmp_path: Path) -> None:
    state = WorkspaceState(file=StateFile(tmp_path / "s"))
    state.add_job("orders", 7, seconds=0)
    for _ in range(4000):
        state.change_job(7, {"name": "fresh"})
        state.flush()
    assert len((tmp_path / "s").read_text().splitlines()) < 6000
    assert WorkspaceState(file=StateFile(tmp_path / "s")).job(7).name == "fresh"


def test_the_state_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    """The error of a task is in it, and may quote a secret."""
    file = StateFile(tmp_path / "s")
    file.append([{"next_id": 1}])
    appended = (tmp_path / "s").stat().st_mode & 0o777
    file.replace([{"next_id": 2}])
    assert (appended, (tmp_path / "s").stat().st_mode & 0o777) == (0o600, 0o600)


def test_a_process_of_its_own_keeps_what_it_answered(tmp_path: Path) -> None:
    """Killed without warning, it still knows every run that it told somebody about."""

    def start() -> tuple[subprocess.Popen[str], str]:
        command = [sys.executable, "-m", "pm_dagster.sandbox.workspace", "--port", "0", "--state", str(tmp_path / "s")]
        environment = {**os.environ, "PM_SANDBOX_TOKEN": "secret"}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert process.stdout
        return process, process.stdout.readline().split()[-1]

    def client(host: str) -> WorkspaceClient:
        return WorkspaceClient(config=Config(host=host, token="secret", auth_type="pat"))

    process, host = start()
    try:
        job = {"name": "a", "job_id": 7, "seconds": None}
        bearer = {"Authorization": "Bearer secret"}
        requests.post(f"{host}/sandbox/jobs", json=job, headers=bearer, timeout=10).raise_for_status()
        run_id = client(host).jobs.run_now(7, idempotency_token="t").run_id
    finally:
        process.kill()
        process.communicate()
    process, host = start()
    try:
        assert int(client(host).jobs.run_now(7, idempotency_token="t").run_id) == run_id
    finally:
        process.terminate()
        process.communicate(timeout=10)


def test_a_thousand_runs_are_quick(workspace: LocalWorkspace) -> None:
    """One connection; far below this on an idle machine, far above when each answer waits for an acknowledgement."""
    workspace.state.add_job("wide", 8, max_concurrent_runs=1000)
    session = requests.Session()
    began = time.monotonic()
    for _ in range(1000):
        session.post(f"{workspace.host}/api/2.2/jobs/run-now", json={"job_id": 8}, headers=head(workspace), timeout=10)
    session.close()
    assert time.monotonic() - began < 10
    assert len(workspace.state.runs(8)) == 1000
