"""A control plane of each test's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pm_dagster_tests.ledger.postgres_control_table import PostgresControlTable


@pytest.fixture
def database(ledger_url: str) -> Iterator[PostgresControlTable]:
    """The owner's side of it."""
    made = PostgresControlTable(ledger_url)
    yield made
    made.leave()
