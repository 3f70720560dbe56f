"""The same end to end without the CLI: the official SDK uploads what is synced, creates the job and runs it."""

from __future__ import annotations

from typing import Any

import pytest
from databricks.sdk.service.jobs import Run

from pm_dagster.dispatch.report import report_in
from pm_dagster_tests.bundle.bundle_files import Json
from pm_dagster_tests.bundle.deployment import Deployment
from pm_dagster_tests.bundle.sdk_deployment import Deployed


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
    deployment.sandbox.workspace.faults.add("run-now", "text", status=500, body=echo, count=1, match="RUN_ID")
    run, output = deployed.run()
    assert (_result(run), deployment.statuses()) == ("SUCCESS", {"SCHEDULED": 1})
    assert [call.fault for call in deployment.sandbox.workspace.log.entries("run-now")].count("before text") == 1
    assert deployment.secrets()
    for secret in deployment.secrets():
        assert secret not in str(output.as_dict())


@pytest.mark.slow
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
    assert said in (output.error or "")
    (line,) = [line for line in (output.logs or "").splitlines() if "CRITICAL" in line]
    assert said in line
    assert "Traceback" not in (output.logs or "")
    assert deployment.statuses() == {"WAITING": 1}


def test_the_settings_come_back_as_they_were_sent(deployed: Deployed) -> None:
    answer: Any = deployed.client.api_client.do("GET", "/api/2.2/jobs/get", query={"job_id": deployed.job_id})
    settings: Json = answer["settings"]
    assert {name: settings[name] for name in deployed.settings} == deployed.settings
