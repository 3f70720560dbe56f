"""A deployment on Azure, in small: directory, vault, workspace, database, and the ways to run a dispatch in it.

Put here: what several tests do. Keep out: expectations.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg2
import pytest

from pm_dagster.config import entra
from pm_dagster.config.credentials import key_vault
from pm_dagster.definitions import build_definitions
from pm_dagster.orchestration import names
from pm_dagster_tests.credentials import entra_site
from pm_dagster_tests.credentials.entra_site import Entra
from pm_dagster_tests.credentials.internet import Internet
from pm_dagster_tests.credentials.postgres_site import Front
from pm_dagster_tests.credentials.vault_site import Vault
from pm_dagster_tests.credentials.workspace_site import WorkspaceSite
from pm_dagster_tests.database import fetched
from pm_dagster_tests.in_process import run_pm

JOB = 1001
VAULT = "team-vault"
VAULT_HOST = f"{VAULT}.vault.azure.net"
WORKSPACE_HOST = "adb-1234567890123456.7.azuredatabricks.net"
DATABASE_HOST = "flow.postgres.database.azure.com"
USER = "process-manager"
SCOPE = "tp_dpf2cdl"
_INSERT = """
INSERT INTO mm_run_plc (cntrt_id, run_sttus_name, wkf_job_id, wkf_job_run_id, file_name, rgstr_file_time)
VALUES (7, 'WAITING', %s, NULL, 'file.csv', now()) RETURNING run_id
"""


def forget_identities() -> None:
    """As a new process: no identity, no client, no token."""
    entra.default_identity.cache_clear()
    entra.managed_identity.cache_clear()
    key_vault._client.cache_clear()


@dataclass(kw_only=True)
class Cloud:
    """Directory and vault."""

    folder: Path
    net: Internet
    entra: Entra
    vault: Vault
    patch: pytest.MonkeyPatch
    #: Whatever may be seen nowhere.
    known: list[str] = field(default_factory=list)

    def secret(self) -> str:
        """A new secret that has no form by which it could be recognised."""
        self.known.append(f"Q{secrets.token_urlsafe(12)}")
        return self.known[-1]

    @property
    def identity(self) -> dict[str, str]:
        """The variables that make us an identity in Entra ID."""
        return {
            "AZURE_TENANT_ID": entra_site.TENANT,
            "AZURE_CLIENT_ID": entra_site.CLIENT_ID,
            "AZURE_CLIENT_SECRET": self.entra.client_secret,
        }

    @property
    def base(self) -> dict[str, str]:
        """What every process needs."""
        return {
            **self.net.environment,
            "HOME": str(self.folder),
            # The database's name is real, the address is ours: libpq checks the certificate against the name.
            "PGHOSTADDR": "127.0.0.1",
            "PM_CALL_BACKOFF_SECONDS": "0.05",
            "PM_CALL_TRIES": "2",
        }

    def use(self, *environments: dict[str, str]) -> None:
        """Give this process these variables."""
        for variables in (self.base, *environments):
            for name, value in variables.items():
                self.patch.setenv(name, value)

    def assert_silent(self, text: str) -> None:
        """No secret and no token is in a text."""
        shown = [secret for secret in (*self.known, *self.entra.tokens) if secret in text]
        assert not shown, f"{len(shown)} secrets are shown"


@dataclass(kw_only=True)
class Deployment(Cloud):
    """Workspace and database as well."""

    workspace: WorkspaceSite
    front: Front
    database_url: str
    database: str
    #: The database's passwords by user; a token of Entra ID will do as well.
    passwords: dict[str, str]

    def token(self) -> str:
        """A new personal access token of the workspace."""
        token = self.secret()
        self.workspace.tokens.add(token)
        return token

    @property
    def place(self) -> dict[str, str]:
        """Where the database is, without a password."""
        return {
            "PM_POSTGRES_HOST": DATABASE_HOST,
            "PM_POSTGRES_PORT": str(self.front.port),
            "PM_POSTGRES_DATABASE": self.database,
            "PM_POSTGRES_USER": USER,
        }

    def with_password(self) -> dict[str, str]:
        """The database with a plain password."""
        self.passwords[USER] = self.secret()
        return {**self.place, "PM_POSTGRES_PASSWORD": self.passwords[USER]}

    def with_token(self) -> dict[str, str]:
        """The workspace with a plain token."""
        return {"DATABRICKS_HOST": self.workspace.url, "DATABRICKS_TOKEN": self.token()}

    def pm(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run `pm` with these variables in this process, to its end; it begins with no identity and leaves none."""
        forget_identities()
        try:
            return run_pm(*arguments, environment={**os.environ, **self.base, **variables})
        finally:
            forget_identities()

    def dispatch(self, **variables: str) -> dict[str, Any]:
        """`pm dispatch`, which must run; gives the numbers. Nothing it prints shows a secret."""
        done = self.pm("dispatch", "--json", **variables)
        assert done.returncode == 0, done.stderr
        self.assert_silent(done.stdout + done.stderr)
        numbers: dict[str, Any] = json.loads(done.stdout)
        return numbers

    def run_dagster(self, instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
        """The Dagster job in this process. Nothing in its events shows a secret."""
        job = build_definitions().resolve_job_def(names.JOB)
        result = job.execute_in_process(instance=instance, raise_on_error=False)
        for event in instance.all_logs(result.run_id):
            self.assert_silent(repr(event))
        return result

    def sql(self, query: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        """Run one statement past the front."""
        with (
            closing(psycopg2.connect(self.database_url, hostaddr="")) as connection,
            connection,
            connection.cursor() as cursor,
        ):
            cursor.execute(query, values)
            return fetched(cursor)

    def add(self, count: int = 1) -> None:
        """Rows that wait for a new run."""
        for _ in range(count):
            self.sql(_INSERT, (JOB,))

    def statuses(self) -> dict[str, int]:
        """Rows by status."""
        return dict(self.sql("SELECT run_sttus_name, count(*) FROM mm_run_plc GROUP BY 1"))

    @property
    def runs(self) -> int:
        """How many Databricks runs there are."""
        return sum(1 for _ in self.workspace.local.state.runs())
