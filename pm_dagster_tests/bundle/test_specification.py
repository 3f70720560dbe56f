"""The job equals its specification, field by field; the tables are written from that, not from the YAML."""

from __future__ import annotations

from typing import Any

import pytest

from pm_dagster_tests.bundle.bundle_files import Json, job_settings

_USER = "someone@example.com"
_POLICY = "ABC0123456789DEF"

#: What the specification says.
SPECIFIED: dict[str, Any] = {
    "name": "Process_Manager",
    "timeout_seconds": 900,
    "max_concurrent_runs": 1,
    "queue.enabled": False,
    "tasks.0.libraries.0.pypi.package": "openpyxl",
    "tasks.0.libraries.1.pypi.package": "xlsxwriter",
    "tasks.0.libraries.2.pypi.package": "pathvalidate",
    "job_clusters.0.new_cluster.spark_version": "16.4.x-scala2.12",
    "job_clusters.0.new_cluster.node_type_id": "Standard_D4ds_v5",
    "job_clusters.0.new_cluster.azure_attributes.availability": "SPOT_WITH_FALLBACK_AZURE",
    "job_clusters.0.new_cluster.enable_elastic_disk": True,
    "job_clusters.0.new_cluster.spark_env_vars.PYSPARK_PYTHON": "/databricks/python3/bin/python3",
    "job_clusters.0.new_cluster.policy_id": _POLICY,
    "job_clusters.0.new_cluster.autoscale.min_workers": 1,
    "job_clusters.0.new_cluster.autoscale.max_workers": 4,
    "job_clusters.0.new_cluster.data_security_mode": "USER_ISOLATION",
    "job_clusters.0.new_cluster.cluster_log_conf.dbfs.destination": "dbfs:/flexflow-default-cluster-logs/",
    "job_clusters.0.new_cluster.is_single_node": False,
    "job_clusters.0.new_cluster.runtime_engine": "STANDARD",
    "job_clusters.0.new_cluster.kind": "CLASSIC_PREVIEW",
}

#: What it leaves open and we chose; each but the keys is a variable with a default.
CHOSEN: dict[str, Any] = {
    "email_notifications.on_failure.0": "process-manager-on-call@example.com",
    "run_as.user_name": _USER,
    "tasks.0.task_key": "process_manager",
    "tasks.0.job_cluster_key": "process_manager_cluster",
    "job_clusters.0.job_cluster_key": "process_manager_cluster",
    "job_clusters.0.new_cluster.azure_attributes.first_on_demand": 1,
    "job_clusters.0.new_cluster.azure_attributes.spot_bid_max_price": -1,
    "job_clusters.0.new_cluster.spark_env_vars.PM_DEADLINE_SECONDS": "480",
}

#: Environment variable -> key of the secret. The last eight keys are those of FlexFlow's scope.
SECRETS = {
    "MDM_CLIENT_SECRET": "mdm-client-secret",
    "JFROG_TOKEN": "jfrog-token",
    "SKID_TOKEN": "skid-token",
    "DATABRICKS_HOST": "databricks-instance",
    "DATABRICKS_TOKEN": "databricks-access-token",
    "PM_POSTGRES_URL": "refDBjdbcURL",
    "PM_POSTGRES_HOST": "refDBhostname",
    "PM_POSTGRES_DATABASE": "refDBname",
    "PM_POSTGRES_USER": "refDBuser",
    "PM_POSTGRES_PASSWORD": "refDBpwd",
    "PM_SCHEMA": "database-postgres-schema",
}
_FILE = f"/Workspace/Users/{_USER}/.bundle/process_manager/%s/files/pm_dagster/cluster/process_manager.py"


def leaves(value: object, path: str = "") -> dict[str, Any]:
    """Every leaf of nested settings under its dotted path; an empty list or object is a leaf."""
    children: list[tuple[object, Any]] = []
    if isinstance(value, dict):
        children = list(value.items())
    elif isinstance(value, list):
        children = list(enumerate(value))
    if not children:
        return {path: value}
    found: dict[str, Any] = {}
    for key, child in children:
        found |= leaves(child, f"{path}.{key}" if path else str(key))
    return found


def expected(target: str, scope: str = "tp_dpf2cdl") -> dict[str, Any]:
    """Every leaf of the job that a target deploys without further variables."""
    environment = "job_clusters.0.new_cluster.spark_env_vars."
    secrets = {f"{environment}{name}": f"{{{{secrets/{scope}/{key}}}}}" for name, key in SECRETS.items()}
    file = {"tasks.0.spark_python_task.python_file": _FILE % target}
    return SPECIFIED | CHOSEN | secrets | file


@pytest.mark.parametrize("target", ["dev", "test", "prod"])
def test_every_field_is_as_specified_and_no_other_is_there(target: str) -> None:
    settings = job_settings(target, {"cluster_policy_id": _POLICY}, _USER)
    assert leaves(settings) == expected(target)


def test_the_sandbox_differs_in_policy_and_parameters_only() -> None:
    found = leaves(job_settings("sandbox", {}, _USER))
    differs = {path: value for path, value in found.items() if expected("sandbox").get(path) != value}
    assert differs == {
        "job_clusters.0.new_cluster.policy_id": "sandbox-policy",
        "tasks.0.spark_python_task.parameters.0": "--read",
        "tasks.0.spark_python_task.parameters.1": "driver",
    }


def test_the_policy_has_no_default() -> None:
    with pytest.raises(KeyError, match="cluster_policy_id"):
        job_settings("prod", {}, _USER)


@pytest.mark.parametrize(
    ("variable", "value", "changed"),
    [
        ("secret_scope", "other", None),
        ("failure_email", "team@example.org", {"email_notifications.on_failure.0": "team@example.org"}),
        ("failure_emails", ["a@example.org"], {"email_notifications.on_failure.0": "a@example.org"}),
        ("first_on_demand", 0, {"job_clusters.0.new_cluster.azure_attributes.first_on_demand": 0}),
        ("deadline_seconds", "60", {"job_clusters.0.new_cluster.spark_env_vars.PM_DEADLINE_SECONDS": "60"}),
        ("run_as", {"service_principal_name": "1-2"}, {"run_as.service_principal_name": "1-2"}),
        ("task_parameters", ["--limit", "5"], {"tasks.0.spark_python_task.parameters.1": "5"}),
    ],
)
def test_what_is_left_open_can_be_set(variable: str, value: object, changed: Json | None) -> None:
    settings = leaves(job_settings("prod", {"cluster_policy_id": _POLICY, variable: value}, _USER))
    if changed is None:
        assert settings.items() >= {k: v for k, v in expected("prod", "other").items() if "env_vars" in k}.items()
    else:
        assert settings.items() >= changed.items()
