"""A world for each test: ledger in place, one job in the workspace, nothing waiting."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pm_dagster.config.settings import Settings
from pm_dagster.ledger.migrate import initialise
from pm_dagster.sandbox.workspace import LocalWorkspace
from pm_dagster_tests.cli.world import JOB, World

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def bare_world(database_url: str) -> Iterator[World]:
    """A world without a ledger."""
    with LocalWorkspace() as workspace:
        workspace.state.add_job("ingest", job_id=JOB, seconds=30.0, max_concurrent_runs=1000)
        yield World(database_url, workspace)


@pytest.fixture
def world(bare_world: World) -> World:
    """A world in which a dispatch can work."""
    initialise(Settings(postgres_url=bare_world.database_url))
    return bare_world
