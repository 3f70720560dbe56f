"""The way into a running sandbox from another terminal: a file in its folder, and whether it is still true.

Put here: that file. Keep out: how it is printed (``pm_dagster/cli/sandbox.py``). It holds the token, so only its owner
may read it, and it is there only while the sandbox runs.
"""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pm_dagster.errors import ProcessManagerError

if TYPE_CHECKING:
    from pm_dagster.sandbox.workspace import LocalWorkspace

_FILE = "running.json"
_PATIENCE_SECONDS = 5.0


@contextmanager
def shown(folder: Path, workspace: LocalWorkspace, database_url: str) -> Iterator[None]:
    """Keep the file in the folder for as long as the block lasts."""
    file = folder / _FILE
    # One that a killed sandbox left keeps its mode when it is only written over.
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        json.dump(_variables(workspace, database_url), stream)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def found(folder: Path) -> Mapping[str, str]:
    """The environment variables that lead to the sandbox of this folder.

    Raises:
        ProcessManagerError: none runs there.
    """
    # Absent, or not what we write.
    with suppress(OSError, ValueError, LookupError, TypeError):
        variables: dict[str, str] = json.loads((folder / _FILE).read_text())
        if _answers(variables["DATABRICKS_HOST"], variables["DATABRICKS_TOKEN"]):
            return variables
    raise ProcessManagerError(
        f"no sandbox runs in {folder}: start one with pm sandbox up, or give its folder with --dir"
    )


def _variables(workspace: LocalWorkspace, database_url: str) -> dict[str, str]:
    return {
        "DATABRICKS_HOST": workspace.host,
        "DATABRICKS_TOKEN": workspace.token,
        "DATABRICKS_AUTH_TYPE": "pat",
        # The Databricks CLI would look up profiles, and keep for an hour who answered at this host.
        "DATABRICKS_CONFIG_FILE": "/dev/null",
        "DATABRICKS_CACHE_ENABLED": "false",
        "PM_POSTGRES_URL": database_url,
    }


def _answers(host: str, token: str) -> bool:
    """Whether it is our workspace that answers: a killed one's port may be somebody else's by now."""
    address = urlsplit(host)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=_PATIENCE_SECONDS)
    try:
        connection.request("GET", "/api/2.0/preview/scim/v2/Me", headers={"Authorization": f"Bearer {token}"})
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
