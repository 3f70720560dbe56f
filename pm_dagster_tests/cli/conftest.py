"""A world for each test: ledger in place, one job in the workspace, nothing waiting."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pm_dagster.sandbox.workspace import LocalWorkspace
from pm_dagster_tests.cli.world import JOB, World

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def bare_world(database_url: str, workspace: LocalWorkspace) -> World:
    """A world without a ledger."""
    return World(database_url, workspace)


@pytest.fixture
def world(ledger_url: str, workspace: LocalWorkspace) -> World:
    """A world in which a dispatch can work."""
    return World(ledger_url, workspace)


@pytest.fixture
def workspace() -> Iterator[LocalWorkspace]:
    """A workspace with one job."""
    with LocalWorkspace() as running:
        running.state.add_job("ingest", job_id=JOB, seconds=30.0, max_concurrent_runs=1000)
        yield running
