"""Fixtures of the proof: databases that already have ledger and audit, and a deployment over one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import psycopg2
import pytest

from pm_dagster.sandbox.postgres import EmbeddedPostgres
from pm_dagster_tests.chaos import audit
from pm_dagster_tests.chaos.deployment import ChaosDeployment, chaos_deployment

_TEMPLATE = "chaos"
_names = (f"chaos_{number}" for number in itertools.count())


@pytest.fixture(scope="session")
def chaos_template(postgres: EmbeddedPostgres, template_with_ledger: str) -> str:
    """The name of a database with control schema, ledger and audit, to be copied."""
    url = postgres.create_database(_TEMPLATE, template=template_with_ledger)
    audit.install(url)
    return _TEMPLATE


@contextmanager
def _copy(postgres: EmbeddedPostgres, template: str) -> Iterator[str]:
    name = next(_names)
    url = postgres.create_database(name, template=template)
    with closing(psycopg2.connect(url)) as connection, connection, connection.cursor() as cursor:
        # What a copied ledger asks of its operator is not these tests' matter.
        cursor.execute("UPDATE process_manager.identity SET made_database = current_database()")
    yield url
    postgres.drop_database(name)


@pytest.fixture
def chaos_database(postgres: EmbeddedPostgres, chaos_template: str) -> Iterator[str]:
    """The URL of such a database of this test's own, over the Unix socket."""
    with _copy(postgres, chaos_template) as url:
        yield url


@pytest.fixture
def chaos(chaos_database: str, tmp_path: Path) -> Iterator[ChaosDeployment]:
    """A deployment with a workspace, a front and a folder."""
    with chaos_deployment(chaos_database, tmp_path) as deployment:
        yield deployment


@pytest.fixture
def deployments(
    postgres: EmbeddedPostgres, chaos_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], AbstractContextManager[ChaosDeployment]]:
    """Makes one deployment after the other."""

    @contextmanager
    def one() -> Iterator[ChaosDeployment]:
        with (
            _copy(postgres, chaos_template) as url,
            chaos_deployment(url, tmp_path_factory.mktemp("deployment")) as deployment,
        ):
            yield deployment

    return one
