"""A program for each version of the SDK: ledger in place, jobs in the workspace, nothing waiting."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pm_dagster_tests.cli.shell import workspace_with_a_job
from pm_dagster_tests.cluster.program import ClusterProgram
from pm_dagster_tests.versions.place import NAMES, folder

FORBIDDEN = 1002


@pytest.fixture(params=NAMES)
def version(request: pytest.FixtureRequest) -> str:
    """The name of a version. Fails where it is not installed."""
    name = str(request.param)
    if not (folder(name) / "databricks").is_dir():
        pytest.fail("the versions of databricks-sdk are not in .versions: run make test-versions")
    return name


@pytest.fixture
def program(version: str, ledger_url: str) -> Iterator[ClusterProgram]:
    """A program whose processes find that version before the locked one."""
    with workspace_with_a_job() as workspace:
        workspace.state.add_job("forbidden", job_id=FORBIDDEN)
        workspace.state.forbid(FORBIDDEN)
        yield ClusterProgram(ledger_url, workspace, {"PYTHONPATH": str(folder(version))})
