"""The implementations that each contract of the control plane runs on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pm_dagster_tests.contracts.control_table import ControlTable
from pm_dagster_tests.contracts.in_memory_control_table import InMemoryControlTable
from pm_dagster_tests.ledger.postgres_control_table import PostgresControlTable


@pytest.fixture(params=["fake", "postgres"])
def table(request: pytest.FixtureRequest) -> Iterator[ControlTable]:
    """A control plane with its owner's side."""
    made: ControlTable = (
        InMemoryControlTable()
        if request.param == "fake"
        else PostgresControlTable(request.getfixturevalue("ledger_url"))
    )
    yield made
    made.leave()
