"""The sandbox of one folder: its database with the control schema, its workspace, and the way in from elsewhere."""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pm_dagster.config.settings import Settings, settings_from
from pm_dagster.errors import ProcessManagerError
from pm_dagster.ledger.connection import connect, translated
from pm_dagster.ledger.migrate import initialise
from pm_dagster.sandbox.postgres import EmbeddedPostgres
from pm_dagster.sandbox.processes import free_port
from pm_dagster.sandbox.seed import fill_secret_scope
from pm_dagster.sandbox.workspace import LocalWorkspace

if TYPE_CHECKING:
    from pm_dagster.sandbox.workspace import LocalWorkspace

_FILE = "running.json"
_ANSWER_SECONDS = 5.0


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
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=_ANSWER_SECONDS)
    try:
        connection.request("GET", "/api/2.0/preview/scim/v2/Me", headers={"Authorization": f"Bearer {token}"})
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


_SCHEMA = Path(__file__).with_name("control_schema.sql")
_DAGSTER_YAML = "telemetry:\n  enabled: false\nnux:\n  enabled: false\n"
#: Of a real deployment; none of it may reach what runs in the sandbox.
_FOREIGN = ("PM_", "PG", "DATABRICKS_", "ARM_", "DAGSTER_")
_END_SECONDS = 30.0


@dataclass(frozen=True)
class Open:
    """A sandbox whose servers run: its settings, its workspace, and the environment for child processes."""

    settings: Settings
    workspace: LocalWorkspace
    environment: Mapping[str, str]


class Place:
    """The folder of a sandbox. Only one process at a time has it open."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.logs = self.folder / "logs"
        self.dagster_home = self.folder / "dagster"
        self._port_file = self.folder / "workspace_port"

    @contextmanager
    def opened(self, workspace_port: int = 0) -> Iterator[Open]:
        """Start database and workspace, make the schemas; stop both at the end."""
        self.dagster_home.mkdir(parents=True, exist_ok=True)
        # So that a checkout never offers the sandbox's data for a commit.
        (self.folder / ".gitignore").write_text("*\n")
        remembered = self.folder / "workspace.json"
        with (
            self._held(),
            _without_libpq_variables(),
            EmbeddedPostgres(self.folder / "postgres", port=0) as postgres,
            LocalWorkspace(port=workspace_port or self._usual_port(), state_file=remembered) as workspace,
        ):
            self._port_file.write_text(str(workspace.port))
            fill_secret_scope(workspace, postgres.tcp_url)
            environment = self._environment(postgres.url, workspace)
            settings = settings_from(environment)
            _make_schemas(settings)
            self._configure_dagster()
            with shown(self.folder, workspace, postgres.tcp_url):
                yield Open(settings, workspace, environment)

    def write_dagster_workspace(self, socket: Path) -> Path:
        """Write the file that leads Dagster's processes to the code server at this socket; gives its path."""
        file = self.folder / "workspace.yaml"
        # The location's name is that of the top-level workspace.yaml, by which Dagster knows the sensor again. JSON is
        # YAML, whatever is in the path.
        location = {"socket": str(socket), "location_name": "pm_dagster.definitions"}
        file.write_text(json.dumps({"load_from": [{"grpc_server": location}]}))
        return file

    def reset(self) -> bool:
        """End whoever has the sandbox open, stop its database, remove its data; False if there was none."""
        if not (self.folder / "lock").exists():
            return False
        self._end_holder()
        EmbeddedPostgres(self.folder / "postgres").stop("immediate")
        shutil.rmtree(self.folder)
        return True

    def _usual_port(self) -> int:
        """The port of the last start if it is free, because what is deployed may hold the workspace's URL."""
        usual = self._port_file.read_text() if self._port_file.exists() else ""
        return free_port(int(usual)) if usual.isdigit() else 0

    def _environment(self, database: str, workspace: LocalWorkspace) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(_FOREIGN)}
        return {
            **inherited,
            "PM_POSTGRES_URL": database,
            "DATABRICKS_HOST": workspace.host,
            "DATABRICKS_TOKEN": workspace.token,
            "DAGSTER_HOME": str(self.dagster_home),
        }

    def _configure_dagster(self) -> None:
        deployed = Path(__file__).parents[2] / "deploy" / "dagster-local" / "dagster.yaml"
        text = deployed.read_text() if deployed.exists() else _DAGSTER_YAML
        (self.dagster_home / "dagster.yaml").write_text(text)

    @contextmanager
    def _held(self) -> Iterator[None]:
        with (self.folder / "lock").open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ProcessManagerError(
                    f"the sandbox in {self.folder} is in use by process {_read_pid(self.folder)}:"
                    " end that one, or give another folder with --dir"
                ) from None
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            yield

    def _end_holder(self) -> None:
        """Whoever holds the lock lives, so the process number in it is not somebody else's."""
        with (self.folder / "lock").open("a+") as lock:
            deadline = time.monotonic() + _END_SECONDS
            asked = False
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    asked = asked or _ask_to_end(_read_pid(self.folder))
                else:
                    return
                if time.monotonic() > deadline:
                    raise ProcessManagerError(
                        f"process {_read_pid(self.folder)} does not stop the sandbox; end it, then try again"
                    )
                time.sleep(0.2)


@contextmanager
def _without_libpq_variables() -> Iterator[None]:
    """Without those from which libpq would take whatever a URL of ours does not say; they come back at the end."""
    theirs = {name: value for name, value in os.environ.items() if name.startswith("PG")}
    for name in theirs:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(theirs)


def _read_pid(folder: Path) -> str:
    return (folder / "lock").read_text().strip() or "?"


def _ask_to_end(pid: str) -> bool:
    if pid.isdigit():
        os.kill(int(pid), signal.SIGTERM)
    return pid.isdigit()


def _make_schemas(settings: Settings) -> None:
    with closing(connect(settings)) as connection, translated(), connection, connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass('public.mm_run_plc') IS NULL")
        if (cursor.fetchone() or (True,))[0]:
            cursor.execute(_SCHEMA.read_text())
    initialise(settings)
