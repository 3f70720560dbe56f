"""The deployment of these tests, and a process that forgets its identities between them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from pm_dagster.net import retry
from pm_dagster.sandbox.postgres import EmbeddedPostgres
from pm_dagster.sandbox.workspace import LocalWorkspace
from pm_dagster_tests.credentials import entra_site, internet
from pm_dagster_tests.credentials.deployment import (
    DATABASE_HOST,
    JOB,
    VAULT_HOST,
    WORKSPACE_HOST,
    Cloud,
    Deployment,
    forget_identities,
)
from pm_dagster_tests.credentials.entra_site import Entra
from pm_dagster_tests.credentials.postgres_site import postgres_front
from pm_dagster_tests.credentials.vault_site import Vault
from pm_dagster_tests.credentials.workspace_site import WorkspaceSite


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    """Directory and vault are up; nothing is in the environment yet."""
    with pytest.MonkeyPatch.context() as patch, internet.internet(tmp_path) as net:
        directory = Entra("")
        vault = Vault(VAULT_HOST, directory)
        net.sites |= {entra_site.HOST: directory.site, VAULT_HOST: vault.site}
        patch.setattr(retry, "BRIEFLY", retry.Retry(pauses=(0.01, 0.01)))
        made = Cloud(folder=tmp_path, net=net, entra=directory, vault=vault, patch=patch)
        directory.client_secret = made.secret()
        forget_identities()
        yield made
        forget_identities()


@pytest.fixture
def deployment(ledger_url: str, postgres: EmbeddedPostgres, cloud: Cloud) -> Iterator[Deployment]:
    """Workspace and database are up as well. ``cloud`` comes last, so that its variables are gone first."""
    passwords: dict[str, str] = {}

    def accepts(user: str, password: str) -> bool:
        return passwords.get(user) == password or cloud.entra.accepts(password, entra_site.POSTGRES)

    backend = postgres.socket_dir / ".s.PGSQL.5432"
    tls = cloud.net.context(DATABASE_HOST)
    with LocalWorkspace() as local, postgres_front(tls, backend, accepts) as front:
        local.state.add_job("ingest", job_id=JOB, seconds=30.0, max_concurrent_runs=1000)
        workspace = WorkspaceSite(WORKSPACE_HOST, local, cloud.entra)
        cloud.net.sites[WORKSPACE_HOST] = workspace.site
        yield Deployment(
            **vars(cloud),
            workspace=workspace,
            front=front,
            database_url=ledger_url,
            database=urlsplit(ledger_url).path.removeprefix("/"),
            passwords=passwords,
        )
