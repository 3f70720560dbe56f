"""One local workspace for each module of tests; each module resets it to what it needs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from databricks.sdk import WorkspaceClient
from databricks.sdk.core import Config

from pm_dagster.sandbox.workspace import LocalWorkspace
from pm_dagster_tests.sandbox.deployed import Deployed


@pytest.fixture(scope="module")
def running() -> Iterator[LocalWorkspace]:
    """A workspace that answers, with whatever the test before left in it."""
    with LocalWorkspace() as workspace:
        yield workspace


@pytest.fixture
def empty(running: LocalWorkspace) -> LocalWorkspace:
    """The same with nothing in it."""
    running.reset()
    return running


@pytest.fixture
def sdk(empty: LocalWorkspace) -> WorkspaceClient:
    """The official SDK's client of it."""
    return WorkspaceClient(config=Config(host=empty.host, token=empty.token, auth_type="pat"))


@pytest.fixture
def deployed(empty: LocalWorkspace) -> Deployed:
    """It with the means to deploy programs and to run them."""
    return Deployed(empty.host, empty.token)
