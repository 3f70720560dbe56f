"""One local workspace for each module of tests; each module resets it to the jobs that it needs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pm_dagster.sandbox.workspace import LocalWorkspace


@pytest.fixture(scope="module")
def running() -> Iterator[LocalWorkspace]:
    """A workspace that answers, with whatever the test before left in it."""
    with LocalWorkspace() as workspace:
        yield workspace
