"""`pm` for each test: the ledger is made, the workspace has one job, nothing waits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pm_dagster.sandbox.workspace import LocalWorkspace
from pm_dagster_tests.cli.shell import Shell, workspace_with_a_job

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def bare_shell(database_url: str, workspace: LocalWorkspace) -> Shell:
    """`pm` before `pm init`."""
    return Shell(database_url, workspace)


@pytest.fixture
def shell(ledger_url: str, workspace: LocalWorkspace) -> Shell:
    """`pm` after `pm init`."""
    return Shell(ledger_url, workspace)


@pytest.fixture
def workspace() -> Iterator[LocalWorkspace]:
    """A workspace with one job."""
    with workspace_with_a_job() as running:
        yield running
