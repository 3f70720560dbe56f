"""The asset when the job is not clear, answers are lost or refused, and nothing may be told; in process, over HTTP."""

from __future__ import annotations

import dagster as dg
import pytest

from pm_dagster_tests.orchestration.cluster.deployment import Deployment, failure, shown


def test_a_job_name_that_nobody_has_says_what_to_do(deployment: Deployment) -> None:
    deployment.add_job("[dev ann] Process_Manager")
    description, _ = failure(deployment.execute())
    assert "no Databricks job that we may see is called 'Process_Manager'" in description
    assert deployment.runs() == []


def test_two_jobs_of_one_name_are_not_guessed_between(deployment: Deployment) -> None:
    jobs = [deployment.add_job(job_id=None) for _ in range(2)]
    deployment.add_job("PROCESS_MANAGER", job_id=None)
    description, _ = failure(deployment.execute())
    assert all(f"job_id {job.job_id}, created by " in description for job in jobs)
    assert deployment.runs() == []
    metadata = shown(deployment.execute(job_id=jobs[1].job_id))
    assert metadata["Databricks job id"] == str(jobs[1].job_id)


def test_a_job_id_that_does_not_exist_is_a_failure(deployment: Deployment) -> None:
    description, _ = failure(deployment.execute(job_id=999))
    assert "Job 999 does not exist." in description


@pytest.mark.parametrize("kind", ["reset", "html", "truncated", "status"])
def test_a_lost_answer_to_run_now_starts_exactly_one_run(deployment: Deployment, kind: str) -> None:
    deployment.add_job()
    deployment.workspace.faults.add("run-now", kind, when="after", count=2)
    shown(deployment.execute())
    assert len(deployment.runs()) == 1
    assert deployment.workspace.log.count("run-now") == 3
    assert deployment.workspace.log.count("run-now", effect=True) == 1


def test_a_workspace_that_does_not_answer_while_the_run_lasts_is_waited_for(deployment: Deployment) -> None:
    deployment.add_job(seconds=0.3)
    deployment.workspace.faults.add("runs/get", "status", skip=1, count=5)
    result = deployment.execute()
    assert shown(result)["end"] == "succeeded"
    assert deployment.logged(result).count("cannot be looked up now; trying again: HTTP 503") >= 1


@pytest.mark.slow
def test_an_op_is_tried_again_only_while_certainly_no_run_exists(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PM_CALL_TRIES", "1")
    deployment.add_job(seconds=0.5)
    deployment.workspace.faults.add("list", "status", status=503, count=1)
    deployment.workspace.faults.add("run-now", "reset", when="after", count=3)
    result = deployment.execute()
    assert shown(result)["end"] == "succeeded"
    (event,) = [e for e in result.all_events if e.event_type is dg.DagsterEventType.STEP_UP_FOR_RETRY]
    assert "HTTP 503" in str(event.event_specific_data)
    assert "may have started a run; sending run-now again" in deployment.logged(result)
    assert len(deployment.runs()) == 1


def test_refused_credentials_are_a_failure_with_advice(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABRICKS_TOKEN", "not-the-token-of-this-workspace")
    result = deployment.execute()
    description, metadata = failure(result)
    assert "does not accept our credentials" in description
    assert "credentials" in metadata["what to do"]
    assert "not-the-token" not in deployment.logged(result)


def test_no_secret_is_in_any_event_log_or_output(deployment: Deployment, capfd: pytest.CaptureFixture[str]) -> None:
    token = deployment.workspace.token
    source = f"print('the token is {token}')\nraise ValueError('Bearer {token}')\n"
    deployment.deploy(source)
    result = deployment.execute(job_name="deployed")
    _, metadata = failure(result)
    assert metadata["error of main"] == "ValueError: Bearer ***"
    assert "the token is ***" in metadata["last lines of main"]
    assert token not in deployment.logged(result) + "".join(capfd.readouterr())
