"""A deployment for each test: ledger in place, one job in the workspace, nothing waiting."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pm_dagster.sandbox.workspace import LocalWorkspace
from pm_dagster_tests.cli.shell import Shell
from pm_dagster_tests.hostile.deployment import JOB, HostileDeployment
from pm_dagster_tests.hostile.raw_server import RawServer, raw_server

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def deployment(ledger_url: str) -> Iterator[HostileDeployment]:
    """A deployment in which a dispatch can work."""
    with LocalWorkspace() as workspace:
        workspace.state.add_job("ingest", job_id=JOB, seconds=None, max_concurrent_runs=10_000)
        yield HostileDeployment(ledger_url, workspace)


@pytest.fixture
def shell(ledger_url: str) -> Iterator[Shell]:
    """A deployment for the command."""
    with LocalWorkspace() as workspace:
        workspace.state.add_job("ingest", job_id=JOB, seconds=None, max_concurrent_runs=10_000)
        yield Shell(ledger_url, workspace)


@pytest.fixture(scope="module")
def server() -> Iterator[RawServer]:
    """One server for all tests of a process: each sets its answer first."""
    with raw_server() as running:
        yield running
