"""The implementations that each contract runs on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pm_dagster_tests.postgres.world import PostgresWorld


@pytest.fixture
def world(database_url: str) -> Iterator[PostgresWorld]:
    """A control plane with its owner's side."""
    made = PostgresWorld(database_url)
    yield made
    made.leave()
