"""The job is one that the Jobs API knows word by word, and the reader that says so finds mistakes."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from pm_dagster_tests.bundle.bundle_files import Json, job_settings
from pm_dagster_tests.bundle.strict_reader import mistakes


def _settings(target: str = "prod") -> Json:
    return job_settings(target, {"cluster_policy_id": "ABC"}, "someone@example.com")


@pytest.mark.parametrize("target", ["dev", "test", "prod", "sandbox"])
def test_the_job_has_no_mistake(target: str) -> None:
    assert mistakes(_settings(target)) == []


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("timeout_second",), 900, "no such field"),
        (("timeout_seconds",), "900", "no int"),
        (("timeout_seconds",), True, "no int"),
        (("queue",), False, "no object"),
        (("queue",), {}, "required"),
        (("queue", "enabled"), "no", "no bool"),
        (("email_notifications", "on_failure"), "a@example.com", "no list"),
        (("tasks", 0, "libraries", 0, "pypi"), "openpyxl", "no object"),
        (("tasks", 0, "spark_python_task", "python_files"), "x.py", "no such field"),
        (("job_clusters", 0, "new_cluster", "data_security_mode"), "SHARED_USER", "none of"),
        (("job_clusters", 0, "new_cluster", "kind"), "CLASSIC", "none of"),
        (("job_clusters", 0, "new_cluster", "spark_env_vars", "PM_X"), 5, "no str"),
        (("job_clusters", 0, "new_cluster", "autoscale", "max"), 4, "no such field"),
        (("job_clusters", 0, "new_cluster", "azure_attributes", "spot_bid_max_price"), "-1", "no float"),
    ],
)
def test_a_seeded_mistake_is_found(path: tuple[Any, ...], value: object, said: str) -> None:
    settings = copy.deepcopy(_settings())
    inner: Any = settings
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    (mistake,) = mistakes(settings)
    assert said in mistake
    assert ".".join(str(key) for key in path) in mistake
