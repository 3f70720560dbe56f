"""A control plane of each test's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pm_dagster_tests.ledger.world import PostgresWorld


@pytest.fixture
def database(database_url: str) -> Iterator[PostgresWorld]:
    """The owner's side of it."""
    made = PostgresWorld(database_url)
    yield made
    made.leave()
