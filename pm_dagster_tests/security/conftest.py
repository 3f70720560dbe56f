"""A control plane of each test's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pm_dagster_tests.ledger.world import PostgresWorld


@pytest.fixture
def database(ledger_url: str) -> Iterator[PostgresWorld]:
    """The owner's side of it."""
    made = PostgresWorld(ledger_url)
    yield made
    made.leave()
