"""The runtime's Python with a copy of what the bundle uploads, and a Postgres that JDBC reaches."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from importlib.resources import files
from pathlib import Path

import psycopg2
import pytest

from pm_dagster.config.settings import Settings
from pm_dagster.ledger.migrate import initialise
from pm_dagster.sandbox.postgres import EmbeddedPostgres
from pm_dagster.sandbox.workspace import LocalWorkspace
from pm_dagster_tests.bundle.bundle_files import ROOT, synced_files
from pm_dagster_tests.cli.shell import JOB
from pm_dagster_tests.runtime import jdbc_driver
from pm_dagster_tests.runtime.place import PYTHON
from pm_dagster_tests.runtime.program import RuntimeProgram

_TEMPLATE, _NAME = "control_plane", "runtime"


@pytest.fixture(scope="session", autouse=True)
def runtime() -> None:
    """Fail at once where the runtime's environment is missing."""
    if not PYTHON.exists() or not jdbc_driver.is_there():
        pytest.fail("the libraries of Databricks Runtime 16.4 are not in .venv-runtime: run make test-runtime")


@pytest.fixture(scope="session")
def uploaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a deployment uploads, and nothing else."""
    folder = tmp_path_factory.mktemp("files")
    for path in synced_files():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, folder / path)
    return folder


@pytest.fixture(scope="session")
def tcp_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A server on 127.0.0.1 with a password."""
    # Of a short path, and open to the server's own user.
    schema = files("pm_dagster.sandbox").joinpath("control_schema.sql").read_text()
    with EmbeddedPostgres(tmp_path_factory.mktemp("pg") / "data", port=0, durable=False) as server:
        with closing(psycopg2.connect(server.create_database(_TEMPLATE))) as connection, connection.cursor() as cursor:
            cursor.execute(schema)
            connection.commit()
        yield server


@pytest.fixture
def program(tcp_postgres: EmbeddedPostgres, uploaded: Path) -> Iterator[RuntimeProgram]:
    """The program on a database with the ledger in place."""
    tcp_postgres.create_database(_NAME, template=_TEMPLATE)
    url = tcp_postgres.database_tcp_url(_NAME)
    initialise(Settings(postgres_url=url))
    with LocalWorkspace() as workspace:
        workspace.state.add_job("ingest", job_id=JOB, seconds=30.0, max_concurrent_runs=10_000)
        yield RuntimeProgram(
            url, workspace, python=str(PYTHON), entry=uploaded / "pm_dagster/cluster/process_manager.py"
        )
    tcp_postgres.drop_database(_NAME)
