"""Databricks' own reader of jobs accepts the job.

Its licence allows use in connection with the Databricks services only, as the CLI's does, so it is no dependency of the
project: `make test-bundle`, which needs the CLI anyway, brings it for the time of the test.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest

from pm_dagster_tests.bundle.bundle_files import job_settings

pytestmark = pytest.mark.bundle


def _reader() -> Any:  # noqa: ANN401 not installed where the types are checked
    try:
        return import_module("databricks.bundles.jobs").Job
    except ModuleNotFoundError:
        pytest.fail("databricks-bundles is not installed; run these tests by `make test-bundle`", pytrace=False)


@pytest.mark.parametrize("target", ["dev", "test", "prod", "sandbox"])
def test_the_job_is_accepted(target: str) -> None:
    settings = job_settings(target, {"cluster_policy_id": "ABC"}, "someone@example.com")
    assert _reader().from_dict(settings).name == "Process_Manager"


def test_a_misspelt_field_is_not() -> None:
    settings = job_settings("prod", {"cluster_policy_id": "ABC"}, "someone@example.com")
    with pytest.raises(Exception, match="timeout"):
        _reader().from_dict({**settings, "timeout": 900})
