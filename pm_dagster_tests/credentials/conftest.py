"""The world of these tests, and a process that forgets its identities between them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from pm_dagster import entra
from pm_dagster.core import patience
from pm_dagster.core.settings import Settings
from pm_dagster.credentials import key_vault
from pm_dagster.postgres.migrate import initialise
from pm_dagster.sandbox.postgres import EmbeddedPostgres
from pm_dagster.sandbox.workspace import LocalWorkspace
from pm_dagster.workspace import scrub
from pm_dagster_tests.credentials import entra_site, internet
from pm_dagster_tests.credentials.entra_site import Entra
from pm_dagster_tests.credentials.postgres_site import postgres_front
from pm_dagster_tests.credentials.vault_site import Vault
from pm_dagster_tests.credentials.workspace_site import WorkspaceSite
from pm_dagster_tests.credentials.world import DATABASE_HOST, JOB, VAULT_HOST, WORKSPACE_HOST, World


@pytest.fixture(autouse=True)
def own_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test reads is not masked in the next."""
    monkeypatch.setattr(scrub, "_in_use", {})


@pytest.fixture
def world(database_url: str, postgres: EmbeddedPostgres, tmp_path: Path) -> Iterator[World]:
    """Directory, vault, workspace and database, all up; nothing in the environment yet."""
    initialise(Settings(postgres_url=database_url))
    directory = Entra("")
    vault = Vault(VAULT_HOST, directory)
    passwords: dict[str, str] = {}

    def accepts(user: str, password: str) -> bool:
        return passwords.get(user) == password or directory.accepts(password, entra_site.POSTGRES)

    backend = postgres.socket_dir / ".s.PGSQL.5432"
    with (
        pytest.MonkeyPatch.context() as patch,
        internet.internet(tmp_path) as net,
        LocalWorkspace() as local,
        postgres_front(net.context(DATABASE_HOST), backend, accepts) as front,
    ):
        local.state.add_job("ingest", job_id=JOB, seconds=30.0, max_concurrent_runs=1000)
        workspace = WorkspaceSite(WORKSPACE_HOST, local, directory)
        net.sites |= {entra_site.HOST: directory.site, VAULT_HOST: vault.site, WORKSPACE_HOST: workspace.site}
        database = urlsplit(database_url).path.removeprefix("/")
        patch.setattr(patience, "_PAUSES", (0.01, 0.01))
        made = World(tmp_path, net, directory, vault, workspace, front, database_url, database, patch, passwords)
        directory.client_secret = made.secret()
        _forget()
        yield made
        _forget()


def _forget() -> None:
    """As a new process: no identity, no client, no token."""
    entra.default_identity.cache_clear()
    entra.managed_identity.cache_clear()
    key_vault._client.cache_clear()
