"""Fixtures for every test: a clean environment, and a fresh control plane on a real Postgres server."""

from __future__ import annotations

import itertools
import os
import shutil
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
from pm_dagster.config.settings import Settings
from pm_dagster.dispatch.ledger_location import Answer
from pm_dagster.ledger import location
from pm_dagster.ledger.connection import connect
from pm_dagster.ledger.migrate import initialise
from pm_dagster.sandbox.postgres import EmbeddedPostgres

if TYPE_CHECKING:
    from collections.abc import Iterator

_FOREIGN = ("PM_", "DATABRICKS_", "ARM_", "PG", "DAGSTER_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
_TEMPLATE = "control_plane"
_TEMPLATE_WITH_LEDGER = "control_plane_with_ledger"
_MEMORY = "/dev/shm"  # noqa: S108 only folders with random names are made in it
#: What the servers of a few test processes take at most. Some containers have 64 MB there.
_MEMORY_NEEDED = 4 << 30
_names = (f"test_{number}" for number in itertools.count())


def pytest_configure() -> None:
    """Keep temporary files in memory where there is enough of it.

    A database is 300 files, and to copy them on a disk takes ten times the CPU.
    """
    if (
        os.access(_MEMORY, os.W_OK)
        and shutil.disk_usage(_MEMORY).free > _MEMORY_NEEDED
        and not os.statvfs(_MEMORY).f_flag & os.ST_NOEXEC
    ):
        os.environ["TMPDIR"] = tempfile.tempdir = _MEMORY


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


@pytest.fixture(scope="session")
def template_with_ledger(postgres: EmbeddedPostgres) -> str:
    """The name of a database with the control schema and a ledger, to be copied: migrating each takes longer."""
    initialise(Settings(postgres_url=postgres.create_database(_TEMPLATE_WITH_LEDGER, template=_TEMPLATE)))
    return _TEMPLATE_WITH_LEDGER


@pytest.fixture
def ledger_url(postgres: EmbeddedPostgres, template_with_ledger: str) -> Iterator[str]:
    """The URL of a database of this test's own: the control schema, a ledger with an identity of its own, no rows."""
    name = next(_names)
    url = postgres.create_database(name, template=template_with_ledger)
    with closing(connect(Settings(postgres_url=url))) as connection:
        location.answer(connection, Answer.COPY)
        connection.commit()
    yield url
    postgres.drop_database(name)
