"""The implementations that each contract of the control plane runs on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pm_dagster_tests.contracts.in_memory_world import InMemoryWorld
from pm_dagster_tests.contracts.worlds import World
from pm_dagster_tests.ledger.world import PostgresWorld


@pytest.fixture(params=["fake", "postgres"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """A control plane with its owner's side."""
    made: World = InMemoryWorld() if request.param == "fake" else PostgresWorld(request.getfixturevalue("database_url"))
    yield made
    made.leave()
