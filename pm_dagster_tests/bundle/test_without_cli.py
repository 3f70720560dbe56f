"""The same end to end without the CLI: the official SDK uploads what is synced, creates the job and runs it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import PurePosixPath
from typing import Any

import pytest
from databricks.sdk import WorkspaceClient
from databricks.sdk.service.jobs import Run, RunOutput
from databricks.sdk.service.workspace import ImportFormat

from pm_dagster.core.report import report_in
from pm_dagster.sandbox.workspace.auth import USER_NAME
from pm_dagster_tests.bundle.bundle_files import ROOT, Json, job_settings, synced_files
from pm_dagster_tests.bundle.deployment import Deployment


class Deployed:
    """The bundle's job as a deployment leaves it in the workspace."""

    def __init__(self, deployment: Deployment) -> None:
        workspace = deployment.sandbox.workspace
        self.client = WorkspaceClient(host=workspace.host, token=workspace.token, auth_type="pat")
        self.settings = job_settings("sandbox", {}, USER_NAME)
        self._upload()
        self.job_id = self._create()

    def _upload(self) -> None:
        entry: str = self.settings["tasks"][0]["spark_python_task"]["python_file"]
        files = PurePosixPath(entry.removesuffix("/pm_dagster/cluster/process_manager.py"))
        for path in synced_files():
            to = files / path.as_posix()
            self.client.workspace.mkdirs(str(to.parent))
            content = (ROOT / path).read_bytes()
            self.client.workspace.upload(str(to), content, format=ImportFormat.AUTO, overwrite=True)

    def _create(self) -> int:
        answer: Any = self.client.api_client.do("POST", "/api/2.2/jobs/create", body=self.settings)
        return int(answer["job_id"])

    def run(self) -> tuple[Run, RunOutput]:
        """Run the job to its end; gives the run and the output of its task."""
        started = self.client.jobs.run_now(self.job_id)
        self.client.jobs.wait_get_run_job_terminated_or_skipped(started.run_id, timeout=timedelta(minutes=2))
        run = self.client.jobs.get_run(started.run_id)
        (task,) = run.tasks or []
        return run, self.client.jobs.get_run_output(task.run_id or 0)


@pytest.fixture
def deployed(deployment: Deployment) -> Deployed:
    return Deployed(deployment)


def _result(run: Run) -> str | None:
    return run.state.result_state.value if run.state and run.state.result_state else None


def test_the_deployed_job_empties_the_view(deployment: Deployment, deployed: Deployed) -> None:
    deployment.add_waiting_jobs(new=5, repairs=3)
    run, output = deployed.run()
    assert _result(run) == "SUCCESS", output.logs
    assert deployment.statuses() == {"SCHEDULED": 8}
    numbers = report_in(output.logs or "")
    assert numbers is not None
    assert numbers["scheduled"] == 8
    assert (numbers["new"]["accepted"], numbers["repair"]["accepted"]) == (5, 3)


def test_a_second_run_finds_nothing_and_sends_nothing(deployment: Deployment, deployed: Deployed) -> None:
    deployment.add_waiting_jobs(new=2, repairs=1)
    deployed.run()
    before = len(deployment.sandbox.workspace.state.runs(1001))
    run, output = deployed.run()
    assert _result(run) == "SUCCESS"
    assert (report_in(output.logs or "") or {})["scheduled"] == 0
    assert len(deployment.sandbox.workspace.state.runs(1001)) == before


def test_no_output_shows_a_secret(deployment: Deployment, deployed: Deployed) -> None:
    deployment.add_waiting_jobs(new=1, repairs=0)
    echo = f"Internal error for Bearer {deployment.sandbox.workspace.token}"
    deployment.sandbox.workspace.faults.add("run-now", "text", status=500, body=echo, count=1)
    run, output = deployed.run()
    assert (_result(run), deployment.statuses()) == ("SUCCESS", {"SCHEDULED": 1})
    assert [call.fault for call in deployment.sandbox.workspace.log.entries("run-now")].count("before text") == 1
    assert deployment.secrets()
    for secret in deployment.secrets():
        assert secret not in str(output.as_dict())


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("refDBjdbcURL", "jdbc:postgresql://127.0.0.1:1/postgres", "the database does not answer"),
        ("databricks-instance", "http://127.0.0.1:1", "cannot connect to http://127.0.0.1:1"),
        ("databricks-access-token", "no-such-token", "does not accept our credentials"),
    ],
)
def test_a_run_that_cannot_do_the_pass_fails_and_says_why(
    deployment: Deployment, deployed: Deployed, key: str, value: str, said: str
) -> None:
    deployment.add_waiting_jobs(new=1, repairs=0)
    deployment.sandbox.workspace.secrets.put("tp_dpf2cdl", key, value)
    run, output = deployed.run()
    assert _result(run) == "FAILED"
    assert said in (output.logs or "")
    assert "Traceback" not in (output.logs or "")
    assert deployment.statuses() == {"WAITING": 1}


def test_the_settings_come_back_as_they_were_sent(deployed: Deployed) -> None:
    answer: Any = deployed.client.api_client.do("GET", "/api/2.2/jobs/get", query={"job_id": deployed.job_id})
    settings: Json = answer["settings"]
    assert {name: settings[name] for name in deployed.settings} == deployed.settings
