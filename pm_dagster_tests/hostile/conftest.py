"""A world for each test: ledger in place, one job in the workspace, nothing waiting."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pm_dagster.sandbox.workspace import LocalWorkspace
from pm_dagster_tests.cli.shell import Shell
from pm_dagster_tests.hostile.raw_server import RawServer, raw_server
from pm_dagster_tests.hostile.world import JOB, HostileWorld

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def world(ledger_url: str) -> Iterator[HostileWorld]:
    """A world in which a dispatch can work."""
    with LocalWorkspace() as workspace:
        workspace.state.add_job("ingest", job_id=JOB, seconds=None, max_concurrent_runs=10_000)
        yield HostileWorld(ledger_url, workspace)


@pytest.fixture
def shell(ledger_url: str) -> Iterator[Shell]:
    """A world for the command."""
    with LocalWorkspace() as workspace:
        workspace.state.add_job("ingest", job_id=JOB, seconds=None, max_concurrent_runs=10_000)
        yield Shell(ledger_url, workspace)


@pytest.fixture(scope="module")
def server() -> Iterator[RawServer]:
    """One server for all tests of a process: each sets its answer first."""
    with raw_server() as running:
        yield running
