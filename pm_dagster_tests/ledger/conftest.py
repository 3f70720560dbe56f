"""A control plane of each test's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pm_dagster_tests.ledger.postgres_control_table import PostgresControlTable


@pytest.fixture
def table(ledger_url: str) -> Iterator[PostgresControlTable]:
    """A control plane with its owner's side."""
    made = PostgresControlTable(ledger_url)
    yield made
    made.leave()
