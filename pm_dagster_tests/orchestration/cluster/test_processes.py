"""Real Dagster processes that are ended while the Databricks run is active: by signals, and by the button in the UI."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import requests

from pm_dagster.orchestration import names
from pm_dagster.sandbox.processes import Children, answers, free_port
from pm_dagster.sandbox.workspace import LocalWorkspace
from pm_dagster.sandbox.workspace.model import Run
from pm_dagster_tests.orchestration.cluster.deployment import JOB, NAME
from pm_dagster_tests.sandbox.deployed import until

_CHECKOUT = Path(__file__).parents[3]
_CONFIG = {"ops": {names.ON_CLUSTER_OP: {"config": {"poll_seconds": 0.2}}}}
_LAUNCH = """
mutation ($config: RunConfigData!, $job: String!) {
  launchRun(executionParams: {
    selector: {jobName: $job, repositoryName: "__repository__", repositoryLocationName: "pm_dagster.definitions"},
    runConfigData: $config, mode: "default"
  }) { __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } }
}
"""
_TERMINATE = """
mutation ($run: String!) {
  terminateRun(runId: $run) { __typename ... on TerminateRunFailure { message } ... on PythonError { message } }
}
"""


class Deployment:
    """A workspace whose job runs until it is cancelled, and a Dagster home as it is deployed."""

    def __init__(self, workspace: LocalWorkspace, home: Path) -> None:
        self.workspace = workspace
        self.home = home
        self.environment = {
            **os.environ,
            "DATABRICKS_HOST": workspace.host,
            "DATABRICKS_TOKEN": workspace.token,
            "DAGSTER_HOME": str(home),
            "PYTHONUNBUFFERED": "1",
        }

    def execute(self, out: Path) -> subprocess.Popen[bytes]:
        """Start `dagster job execute`; its output goes to a file."""
        config = self.home / "run.yaml"
        config.write_text(json.dumps(_CONFIG))
        job = ["-m", "pm_dagster.definitions", "-j", "process_manager_on_cluster", "-c", str(config)]
        with out.open("wb") as stream:
            return subprocess.Popen(
                [sys.executable, "-m", "dagster", "job", "execute", *job],
                env=self.environment,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )

    def active_run(self) -> Run:
        """The Databricks run, once it is seen by whoever waits for it."""
        until(lambda: bool(self.workspace.log.count("runs/get")), "the Databricks run is looked up")
        (run,) = self.workspace.state.runs()
        return run

    def dagster_runs(self) -> list[dg.DagsterRun]:
        """What Dagster keeps."""
        with dg.DagsterInstance.from_config(str(self.home)) as instance:
            return list(instance.get_runs())

    def everything_kept(self) -> bytes:
        """All files of the Dagster home: events, logs, output."""
        return b"".join(file.read_bytes() for file in self.home.rglob("*") if file.is_file())


@pytest.fixture
def deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployment]:
    shutil.copy(_CHECKOUT / "deploy" / "dagster-local" / "dagster.yaml", tmp_path)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    with LocalWorkspace() as workspace:
        workspace.state.add_job(NAME, job_id=JOB, seconds=None, max_concurrent_runs=1, queue=False)
        yield Deployment(workspace, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_process_cancels_the_databricks_run(deployment: Deployment, number: signal.Signals) -> None:
    out = deployment.home / "out.txt"
    process = deployment.execute(out)
    try:
        run = deployment.active_run()
        process.send_signal(number)
        assert process.wait(60) != 0
    finally:
        process.kill()
        process.wait()
    until(lambda: not deployment.workspace.state.run(run.run_id).last.active, "the Databricks run has ended")
    assert run.last.result == "CANCELED"
    assert len(deployment.workspace.state.runs()) == 1
    (dagster_run,) = deployment.dagster_runs()
    assert dagster_run.status in (dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
    text = out.read_text()
    assert f"Cancelling Databricks run {run.run_id}" in text
    # Dagster would try an op again that has a retry policy, although it was told to stop.
    assert "STEP_UP_FOR_RETRY" not in text
    assert deployment.workspace.token.encode() not in deployment.everything_kept()


@pytest.mark.slow
def test_the_job_runs_from_the_command_line_without_a_database(deployment: Deployment) -> None:
    out = deployment.home / "out.txt"
    process = deployment.execute(out)
    try:
        deployment.workspace.state.finish(deployment.active_run().run_id)
        assert process.wait(60) == 0, out.read_text()
    finally:
        process.kill()
        process.wait()
    (dagster_run,) = deployment.dagster_runs()
    assert dagster_run.status is dg.DagsterRunStatus.SUCCESS
    assert deployment.workspace.token.encode() not in deployment.everything_kept()


@pytest.mark.slow
def test_terminating_the_run_in_the_ui_cancels_the_databricks_run(deployment: Deployment, tmp_path: Path) -> None:
    port = free_port(0)
    python = [sys.executable, "-m"]
    with Children(deployment.environment, tmp_path / "logs") as children:
        workspace = ["-w", str(_CHECKOUT / "workspace.yaml")]
        children.start("webserver", [*python, "dagster_webserver", "-h", "127.0.0.1", "-p", str(port), *workspace])
        until(lambda: answers(port) or bool(children.ended()), "the UI answers")
        children.start("daemon", [*python, "dagster._daemon", "run", *workspace])
        launched = _ask(port, _LAUNCH, config=_CONFIG, job="process_manager_on_cluster")["launchRun"]
        dagster_run = launched["run"]["runId"]
        run = deployment.active_run()
        assert _ask(port, _TERMINATE, run=dagster_run)["terminateRun"]["__typename"] == "TerminateRunSuccess"
        until(lambda: not deployment.workspace.state.run(run.run_id).last.active, "the Databricks run has ended")
        until(lambda: deployment.dagster_runs()[0].is_finished, "the Dagster run has ended")
    assert run.last.result == "CANCELED"
    (kept,) = deployment.dagster_runs()
    assert (kept.run_id, kept.status) == (dagster_run, dg.DagsterRunStatus.CANCELED)
    assert len(deployment.workspace.state.runs()) == 1


def _ask(port: int, query: str, **variables: Any) -> dict[str, Any]:  # noqa: ANN401
    reply = requests.post(
        f"http://127.0.0.1:{port}/graphql", json={"query": query, "variables": variables}, timeout=60
    ).json()
    assert "errors" not in reply, reply
    data: dict[str, Any] = reply["data"]
    return data
