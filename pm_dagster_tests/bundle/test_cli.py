"""The real Databricks CLI deploys the bundle to the sandbox, runs it there and takes it away again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pm_dagster.sandbox.workspace.model import USER_NAME
from pm_dagster_tests.bundle.bundle_files import Json, job_settings
from pm_dagster_tests.bundle.deployment import Deployment

pytestmark = pytest.mark.bundle

_JOB_FILE = Path("resources") / "tp_dp_ff_pipelines_job.yml"
_ADDED_BY_THE_CLI = {"deployment", "edit_mode", "format"}


def _calls(deployment: Deployment, endpoint: str) -> int:
    return len(deployment.sandbox.workspace.log.entries(endpoint))


def _edit(deployment: Deployment, old: str, new: str) -> None:
    file = deployment.folder / _JOB_FILE
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")


def test_deploy_run_redeploy_edit_and_destroy(with_cli: Deployment) -> None:
    target = ("-t", "sandbox")
    with_cli.add_waiting_jobs(new=4, repairs=2)
    said = with_cli.succeeds("bundle", "validate", "--strict", *target)
    assert "Validation OK!" in said
    said += with_cli.succeeds("bundle", "plan", *target)
    assert with_cli.jobs() == []

    said += with_cli.succeeds("bundle", "deploy", *target)
    (job,) = with_cli.jobs()
    assert job.name == "Process_Manager"

    said += with_cli.succeeds("bundle", "run", "process_manager", *target)
    assert with_cli.statuses() == {"SCHEDULED": 6}
    assert '"scheduled": 6' in said

    summary = json.loads(with_cli.succeeds("bundle", "summary", *target, "-o", "json"))
    assert summary["resources"]["jobs"]["process_manager"]["id"] == str(job.job_id)

    again = with_cli.succeeds("bundle", "deploy", *target)
    assert "1 unchanged" in again
    assert _calls(with_cli, "reset") == 0

    _edit(with_cli, "timeout_seconds: 900", "timeout_seconds: 901")
    changed = with_cli.succeeds("bundle", "deploy", *target)
    assert "1 changed" in changed
    assert _calls(with_cli, "reset") == 1
    (job,) = with_cli.jobs()
    assert job.settings["timeout_seconds"] == 901

    said += with_cli.succeeds("bundle", "destroy", "--auto-approve", *target)
    assert with_cli.jobs() == []
    for secret in with_cli.secrets():
        assert secret not in said


@pytest.mark.parametrize("target", ["test", "prod"])
def test_one_job_with_every_field_as_specified(with_cli: Deployment, target: str) -> None:
    policy = {"BUNDLE_VAR_cluster_policy_id": "ABC0123"}
    with_cli.succeeds("bundle", "validate", "--strict", "-t", target, **policy)
    with_cli.succeeds("bundle", "deploy", "-t", target, **policy)
    (job,) = with_cli.jobs()
    sent = {name: value for name, value in job.settings.items() if name not in _ADDED_BY_THE_CLI}
    assert sent == job_settings(target, {"cluster_policy_id": "ABC0123"}, USER_NAME)
    assert "1 unchanged" in with_cli.succeeds("bundle", "deploy", "-t", target, **policy)


def test_the_copy_of_ones_own_carries_ones_name(with_cli: Deployment) -> None:
    with_cli.succeeds("bundle", "deploy", "-t", "dev", BUNDLE_VAR_cluster_policy_id="ABC0123")
    (job,) = with_cli.jobs()
    assert job.name == "[dev sandbox] Process_Manager"
    assert job.max_concurrent_runs == 1


def test_without_a_policy_nothing_is_deployed(with_cli: Deployment) -> None:
    done = with_cli.cli("bundle", "deploy", "-t", "prod")
    assert done.returncode != 0
    assert "cluster_policy_id" in done.stdout + done.stderr
    assert with_cli.jobs() == []


def test_variables_reach_the_job(with_cli: Deployment) -> None:
    overrides = with_cli.folder / ".databricks" / "bundle" / "prod" / "variable-overrides.json"
    overrides.parent.mkdir(parents=True)
    given: Json = {"run_as": {"service_principal_name": "1-2-3"}, "task_parameters": ["--limit", "5"]}
    overrides.write_text(json.dumps(given), encoding="utf-8")
    simple = {"cluster_policy_id": "P", "failure_email": "team@example.org", "secret_scope": "ours"}
    environment = {f"BUNDLE_VAR_{name}": value for name, value in simple.items()}
    with_cli.succeeds("bundle", "deploy", "-t", "prod", BUNDLE_VAR_first_on_demand="2", **environment)
    (job,) = with_cli.jobs()
    sent = {name: value for name, value in job.settings.items() if name not in _ADDED_BY_THE_CLI}
    assert sent == job_settings("prod", simple | given | {"first_on_demand": 2}, USER_NAME)


def test_a_run_that_cannot_reach_the_database_fails_with_one_clear_line(with_cli: Deployment) -> None:
    with_cli.succeeds("bundle", "deploy", "-t", "sandbox")
    with_cli.sandbox.workspace.secrets.put("tp_dpf2cdl", "refDBjdbcURL", "jdbc:postgresql://127.0.0.1:1/postgres")
    done = with_cli.cli("bundle", "run", "process_manager", "-t", "sandbox")
    assert done.returncode != 0
    assert "Task process_manager failed" in done.stdout + done.stderr
    (job,) = with_cli.jobs()
    (run,) = with_cli.sandbox.workspace.state.runs(job.job_id)
    said = with_cli.succeeds("jobs", "get-run-output", str(run.last.tasks[0].run_id))
    assert "the database does not answer" in json.loads(said)["error"]
    for secret in with_cli.secrets():
        assert secret not in said
