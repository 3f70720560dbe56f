"""A control plane of each test's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pm_dagster_tests.ledger.world import PostgresWorld


@pytest.fixture
def world(ledger_url: str) -> Iterator[PostgresWorld]:
    """A control plane with its owner's side."""
    made = PostgresWorld(ledger_url)
    yield made
    made.leave()
