"""The program for each test: ledger in place, one job in the workspace, nothing waiting."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pm_dagster.sandbox.workspace import LocalWorkspace
from pm_dagster_tests.cli.shell import workspace_with_a_job
from pm_dagster_tests.cluster.program import ClusterProgram


@pytest.fixture
def program_without_ledger(database_url: str, workspace: LocalWorkspace) -> ClusterProgram:
    """The program on a database without a ledger."""
    return ClusterProgram(database_url, workspace)


@pytest.fixture
def program(ledger_url: str, workspace: LocalWorkspace) -> ClusterProgram:
    """The program on a database with the ledger in place."""
    return ClusterProgram(ledger_url, workspace)


@pytest.fixture
def workspace() -> Iterator[LocalWorkspace]:
    """A workspace with one job."""
    with workspace_with_a_job() as running:
        yield running
