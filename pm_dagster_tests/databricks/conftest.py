"""A small HTTP server of each test's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pm_dagster_tests.databricks.tiny_server import TinyServer, tiny_server


@pytest.fixture
def server() -> Iterator[TinyServer]:
    """The server, and nothing of it left afterwards."""
    with tiny_server() as running:
        yield running
