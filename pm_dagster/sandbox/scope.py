"""The secret scope of the sandbox: the names that a deployment has, with values that lead to the sandbox's own servers.

Put here: names and values. Keep out: keeping them (``databricks/secret_scopes.py``).
"""

from __future__ import annotations

import secrets
from urllib.parse import urlsplit

from pm_dagster.sandbox.workspace import LocalWorkspace

#: FlexFlow's scope; a bundle's variable ``secret_scope`` has it as default.
SCOPE = "tp_dpf2cdl"


def fill(workspace: LocalWorkspace, database_url: str) -> None:
    """Put every secret of a deployment into the workspace's scope, over those of an earlier start.

    Args:
        workspace: one that runs, so that its URL is known.
        database_url: a libpq URL over TCP with user and password, because JDBC speaks nothing else.
    """
    database = urlsplit(database_url)
    values = {
        "databricks-instance": workspace.host,
        "databricks-access-token": workspace.token,
        "databricks-catalog-name": "sandbox",
        "database-postgres-schema": "public",
        "refDBjdbcURL": f"jdbc:postgresql://{database.hostname}:{database.port}{database.path}",
        "refDBhostname": str(database.hostname),
        "refDBname": database.path.lstrip("/"),
        "refDBuser": str(database.username),
        "refDBpwd": str(database.password),
        # Nothing in the sandbox takes these; they are there because the job's environment names them.
        **{key: secrets.token_urlsafe(16) for key in ("mdm-client-secret", "jfrog-token", "skid-token")},
    }
    for key, value in values.items():
        workspace.secrets.put(SCOPE, key, value)
