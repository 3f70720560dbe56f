"""The sandbox of a folder: its secrets lead to its own servers, and another terminal finds the way in."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest
import requests
from psycopg2 import sql

from pm_dagster.errors import ProcessManagerError
from pm_dagster.sandbox.place import Open, Place, found
from pm_dagster.sandbox.seed import SCOPE

# Names of the scope in the control plane, then those of the job's further secrets.
_KEYS = {
    "databricks-access-token", "databricks-instance", "databricks-catalog-name", "database-postgres-schema",
    "refDBjdbcURL", "refDBname", "refDBuser", "refDBpwd", "refDBhostname",
    "mdm-client-secret", "jfrog-token", "skid-token",
}  # fmt: skip
_FOREIGN = {"ARM_CLIENT_ID": "x", "DATABRICKS_CONFIG_PROFILE": "x", "PM_SCHEMA": "x", "DATABRICKS_CLI_PATH": "kept"}


def secrets_of(sandbox: Open) -> dict[str, str]:
    store = sandbox.workspace.secrets
    return {key: store.get(SCOPE, key) for key in store.keys(SCOPE)}


def rows_seen_by(secrets: dict[str, str]) -> int:
    """How many waiting jobs a program sees that has these secrets and nothing else."""
    address, _, database = secrets["refDBjdbcURL"].removeprefix("jdbc:postgresql://").partition("/")
    host, _, port = address.partition(":")
    assert (host, database) == (secrets["refDBhostname"], secrets["refDBname"])
    user, password = secrets["refDBuser"], secrets["refDBpwd"]
    statement = sql.SQL("SELECT count(*) FROM {}.mm_run_wait_vw")
    with closing(psycopg2.connect(host=host, port=port, dbname=database, user=user, password=password)) as connection:
        cursor = connection.cursor()
        cursor.execute(statement.format(sql.Identifier(secrets["database-postgres-schema"])))
        return int((cursor.fetchone() or (-1,))[0])


def pm(*arguments: str, then: str = "", **more: str) -> subprocess.CompletedProcess[str]:
    """`pm sandbox ...`, or a shell that evaluates it and goes on with ``then``."""
    command = [sys.executable, "-m", "pm_dagster.cli", "sandbox", *arguments]
    if then:
        command = ["sh", "-c", f'eval "$("$@")" && {then}', "sh", *command]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env={**os.environ, **more})


def test_the_secrets_lead_to_its_servers_after_every_start(tmp_path: Path) -> None:
    place = Place(tmp_path)
    earlier: dict[str, str] = {}
    for _ in range(2):
        with place.opened() as sandbox:
            found = secrets_of(sandbox)
            assert found.keys() == _KEYS
            assert found["databricks-access-token"] != earlier.get("databricks-access-token")
            bearer = {"Authorization": f"Bearer {found['databricks-access-token']}"}
            me = requests.get(f"{found['databricks-instance']}/api/2.0/preview/scim/v2/Me", headers=bearer, timeout=10)
            assert me.status_code == 200
            assert rows_seen_by(found) == 0
            with pytest.raises(psycopg2.OperationalError):
                rows_seen_by({**found, "refDBpwd": "wrong"})
            earlier = found


def test_the_workspace_keeps_its_port_unless_another_took_it(tmp_path: Path) -> None:
    place = Place(tmp_path)
    ports = []
    for _ in range(2):
        with place.opened() as sandbox:
            sandbox.workspace.files.make_folder("/Shared/deployed")
            ports.append(sandbox.workspace.port)
    assert ports[0] == ports[1]
    with socket.socket() as other:
        other.bind(("127.0.0.1", ports[0]))
        other.listen()
        with place.opened() as sandbox:
            assert sandbox.workspace.port != ports[0]
            assert sandbox.workspace.files.real_path("/Shared/deployed").is_dir()


def test_the_variables_of_libpq_do_not_reach_it_and_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = {"PGHOST": "db.example", "PGPORT": "1", "PGDATABASE": "theirs", "PGOPTIONS": "-c search_path=nowhere"}
    for name, value in theirs.items():
        monkeypatch.setenv(name, value)

    def open_it(then: int) -> float:
        with Place(tmp_path).opened() as sandbox:
            assert not [name for name in (*os.environ, *sandbox.environment) if name.startswith("PG")]
            assert rows_seen_by(secrets_of(sandbox)) == 0
            return 1 / then

    assert open_it(1) == 1.0
    assert {name: value for name, value in os.environ.items() if name.startswith("PG")} == theirs
    with pytest.raises(ZeroDivisionError):
        open_it(0)
    assert {name: value for name, value in os.environ.items() if name.startswith("PG")} == theirs


def test_another_terminal_uses_it(tmp_path: Path) -> None:
    folder = ("--dir", str(tmp_path / "with space"))
    with Place(tmp_path / "with space").opened() as sandbox:
        told = json.loads(pm("env", *folder, "--json").stdout)
        assert told["DATABRICKS_HOST"] == sandbox.workspace.host
        assert told["DATABRICKS_TOKEN"] == sandbox.workspace.token
        with closing(psycopg2.connect(told["PM_POSTGRES_URL"])) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT inet_server_addr()")
            assert (cursor.fetchone() or ("",))[0].startswith("127.0.0.1")
        done = pm("env", *folder, then="env", **_FOREIGN)
        seen = dict(line.partition("=")[::2] for line in done.stdout.splitlines())
        assert told.items() <= seen.items()
        assert _FOREIGN.keys() & seen.keys() == {"DATABRICKS_CLI_PATH"}
        doctor = pm("env", *folder, then=f"'{sys.executable}' -m pm_dagster.cli doctor", PM_POSTGRES_URL="nowhere")
        assert doctor.returncode == 0, doctor.stdout + doctor.stderr
        assert sandbox.workspace.token not in doctor.stdout
        (shown,) = (tmp_path / "with space").glob("running.json")
        assert shown.stat().st_mode & 0o077 == 0
    assert not shown.exists()
    gone = pm("env", *folder)
    assert (gone.returncode, gone.stdout) == (1, "")
    assert "no sandbox runs in" in gone.stderr


def test_what_a_killed_sandbox_left_is_not_believed(tmp_path: Path) -> None:
    with Place(tmp_path).opened() as sandbox:
        left = (tmp_path / "running.json").read_text()
        stale = {**json.loads(left), "DATABRICKS_TOKEN": "of an earlier start"}
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "running.json").write_text(json.dumps(stale))
        with pytest.raises(ProcessManagerError, match="no sandbox runs"):
            found(tmp_path / "other")
        assert found(tmp_path)["DATABRICKS_HOST"] == sandbox.workspace.host
    for text in (left, "{}", "no json", "[]"):
        (tmp_path / "running.json").write_text(text)
        (tmp_path / "running.json").chmod(0o644)
        with pytest.raises(ProcessManagerError, match="pm sandbox up"):
            found(tmp_path)
    with Place(tmp_path).opened():
        assert (tmp_path / "running.json").stat().st_mode & 0o077 == 0
