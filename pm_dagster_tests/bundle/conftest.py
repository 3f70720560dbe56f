"""A sandbox and a copy of the bundle for each test."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pm_dagster.sandbox.place import Place
from pm_dagster_tests.bundle.deployment import CLI, INGEST_JOB, Deployment, copy_of_the_bundle


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    """A sandbox with one job that rows may name, and a copy of the bundle."""
    (tmp_path / "bundle").mkdir()
    (tmp_path / "home").mkdir()
    folder = copy_of_the_bundle(tmp_path / "bundle")
    with Place(tmp_path / "sandbox").opened() as sandbox:
        sandbox.workspace.state.add_job("ingest", job_id=INGEST_JOB, seconds=60.0, max_concurrent_runs=1000)
        yield Deployment(sandbox, folder, tmp_path / "home")


@pytest.fixture
def with_cli(deployment: Deployment) -> Deployment:
    """The same where the real Databricks CLI is installed."""
    if shutil.which(CLI) is None:
        pytest.fail(
            f"there is no `{CLI}` on PATH. Install the Databricks CLI, 1.3 or newer"
            " (https://docs.databricks.com/dev-tools/cli/install.html), and run `make test-bundle` again.",
            pytrace=False,
        )
    return deployment
