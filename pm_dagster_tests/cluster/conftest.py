"""A world for each test: ledger in place, one job in the workspace, nothing waiting."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pm_dagster.config.settings import Settings
from pm_dagster.ledger.migrate import initialise
from pm_dagster.sandbox.workspace import LocalWorkspace
from pm_dagster_tests.cli.world import JOB
from pm_dagster_tests.cluster.world import ClusterWorld


@pytest.fixture
def bare_world(database_url: str) -> Iterator[ClusterWorld]:
    """A world without a ledger."""
    with LocalWorkspace() as workspace:
        workspace.state.add_job("ingest", job_id=JOB, seconds=30.0, max_concurrent_runs=1000)
        yield ClusterWorld(database_url, workspace)


@pytest.fixture
def world(bare_world: ClusterWorld) -> ClusterWorld:
    """A world in which a pass can work."""
    initialise(Settings(postgres_url=bare_world.database_url))
    return bare_world
