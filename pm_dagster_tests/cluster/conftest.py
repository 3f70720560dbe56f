"""The program for each test: ledger in place, one job in the workspace, nothing waiting."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pm_dagster.config.settings import Settings
from pm_dagster.ledger.migrate import initialise
from pm_dagster.sandbox.workspace import LocalWorkspace
from pm_dagster_tests.cli.world import JOB
from pm_dagster_tests.cluster.program import ClusterProgram


@pytest.fixture
def program_without_ledger(database_url: str) -> Iterator[ClusterProgram]:
    """The program on a database without a ledger."""
    with LocalWorkspace() as workspace:
        workspace.state.add_job("ingest", job_id=JOB, seconds=30.0, max_concurrent_runs=1000)
        yield ClusterProgram(database_url, workspace)


@pytest.fixture
def program(program_without_ledger: ClusterProgram) -> ClusterProgram:
    """The program on a database with the ledger in place."""
    initialise(Settings(postgres_url=program_without_ledger.database_url))
    return program_without_ledger
