"""Fixtures for every test: a clean environment, and a fresh control plane on a real Postgres server."""

from __future__ import annotations

import itertools
import os
import signal
import tempfile
from contextlib import closing
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg2
import pytest

from pm_dagster.cli.app import logs_as_before
from pm_dagster.config import masking
from pm_dagster.sandbox.postgres import EmbeddedPostgres

if TYPE_CHECKING:
    from collections.abc import Iterator

_FOREIGN = ("PM_", "DATABRICKS_", "ARM_", "PG", "DAGSTER_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
_TEMPLATE = "control_plane"
_names = (f"test_{number}" for number in itertools.count())


@pytest.fixture(autouse=True, scope="session")
def clean_environment() -> Iterator[None]:
    """Keep the settings of the person who runs the tests out of them, the server's start included.

    A shell that starts them in the background has them ignore SIGINT, and so every process that they start.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.upper().startswith(_FOREIGN):
                patch.delenv(name)
        yield


@pytest.fixture(autouse=True)
def untouched_log() -> Iterator[None]:
    """Take back what a program that a test ran in this process did to our logger."""
    with logs_as_before():
        yield


@pytest.fixture(autouse=True)
def own_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test reads as a secret is not masked in the next: it may be any word."""
    monkeypatch.setattr(masking, "_registered", {})


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """One server for each test process, with a template database that holds the control schema."""
    schema = files("pm_dagster.sandbox").joinpath("control_schema.sql").read_text()
    with (
        tempfile.TemporaryDirectory(prefix="pm-tests-") as folder,
        EmbeddedPostgres(Path(folder) / "pg", durable=False) as server,
    ):
        with closing(psycopg2.connect(server.create_database(_TEMPLATE))) as connection, connection.cursor() as cursor:
            cursor.execute(schema)
            connection.commit()
        yield server


@pytest.fixture
def database_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    """The URL of a database of this test's own: the control schema, no rows."""
    name = next(_names)
    yield postgres.create_database(name, template=_TEMPLATE)
    postgres.drop_database(name)
