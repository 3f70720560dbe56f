"""A real Postgres server from a wheel, as one object with a beginning and an end.

It listens on a Unix socket in a private folder and, if asked, on 127.0.0.1 with a password; never elsewhere. For demos,
development and tests. The programs and the user they run as are found in `postgres_programs` and `server_user`.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import socket
from contextlib import closing, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self
from urllib.parse import quote

import psycopg2
from psycopg2 import sql

from pm_dagster.sandbox import postgres_programs
from pm_dagster.sandbox.postgres_programs import EmbeddedPostgresError
from pm_dagster.sandbox.server_user import ServerUser

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

# What `sockaddr_un` holds without its closing zero on Linux; macOS has 103.
_SOCKET_PATH_LIMIT = 103
_SUPERUSER = "postgres"
_SOCKET_PORT = 5432
#: pg_ctl hands the folder to /bin/sh between double quotes.
_SHELL_SYNTAX = frozenset('"$`\\\n')

_HBA = """\
local all all trust
host  all all 127.0.0.1/32 scram-sha-256
"""


class EmbeddedPostgres:
    """A Postgres server whose data lives in `data_dir`; `with` starts it and stops it.

    Args:
        data_dir: the server's folder, created when absent (its parents too), readable by the server's user only.
        port: None for the socket alone; 0 for a free port of 127.0.0.1 besides; or that port.
        durable: False gives up crash safety of the *machine* for speed. A killed server recovers either way.

    Raises:
        EmbeddedPostgresError: the folder's name holds a character that has a meaning to the shell.
    """

    def __init__(self, data_dir: Path | str, port: int | None = None, *, durable: bool = True) -> None:
        self.data_dir = Path(data_dir).resolve()
        if not _SHELL_SYNTAX.isdisjoint(str(self.data_dir)):
            raise EmbeddedPostgresError(
                f"pg_ctl would let the shell read this folder's name, choose another: {self.data_dir}"
            )
        self._wanted_port = port
        self._port: int | None = port or None
        self._durable = durable
        self._user = ServerUser.current()

    @property
    def socket_dir(self) -> Path:
        """The folder of the Unix socket: the data folder, or a short private one where that path is too long."""
        if len(os.fsencode(self.data_dir / f".s.PGSQL.{_SOCKET_PORT}.lock")) <= _SOCKET_PATH_LIMIT:
            return self.data_dir
        # Not gettempdir(): TMPDIR may be as deep as the checkout.
        return Path("/tmp") / f"pm-pg-{sha256(os.fsencode(self.data_dir)).hexdigest()[:12]}"  # noqa: S108 owner is checked

    @property
    def url(self) -> str:
        """The libpq URL of the `postgres` database over the Unix socket."""
        return self.database_url(_SUPERUSER)

    @property
    def tcp_url(self) -> str:
        """The libpq URL of the `postgres` database over 127.0.0.1, password included.

        Raises:
            EmbeddedPostgresError: the server was not asked for a port, or was not started yet.
        """
        return self.database_tcp_url(_SUPERUSER)

    def database_url(self, name: str) -> str:
        """The libpq URL of database `name` over the Unix socket."""
        folder = quote(str(self.socket_dir), safe="")
        return f"postgresql://{_SUPERUSER}@/{quote(name, safe='')}?host={folder}&port={self._socket_port}"

    def database_tcp_url(self, name: str) -> str:
        """The libpq URL of database `name` over 127.0.0.1; raises as `tcp_url` does."""
        if self._port is None:
            raise EmbeddedPostgresError("This server has no TCP port: create it with port=0 and start it.")
        return f"postgresql://{_SUPERUSER}:{self._password()}@127.0.0.1:{self._port}/{quote(name, safe='')}"

    def start(self) -> None:
        """Start the server, making its folder first if need be; does nothing when it already runs.

        Raises:
            EmbeddedPostgresError: the wheel is missing, or Postgres refuses; the text says why.
        """
        with self._locked():
            if not (self.data_dir / "PG_VERSION").exists():
                self._initialise()
            if not self.is_running():
                self._launch()
            self._adopt_port()

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop the server and wait until it is gone; does nothing when it does not run.

        Args:
            mode: "fast" closes the connections and writes everything out; "immediate" drops everything as a crash
                would, so that the next start recovers from the log.
        """
        if self.is_running():
            self._pg_ctl("-m", mode, "stop")
        if self.socket_dir != self.data_dir and self.socket_dir.exists():
            shutil.rmtree(self.socket_dir)

    def restart(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop the server as `stop` does, then start it; a TCP port stays the same."""
        self.stop(mode)
        self.start()

    def is_running(self) -> bool:
        """Whether a server runs on this data folder, whoever started it."""
        return postgres_programs.server_runs(self.data_dir)

    def create_database(self, name: str, template: str | None = None) -> str:
        """Create database `name`, as a copy of `template` if given; gives its socket URL.

        Raises:
            EmbeddedPostgresError: it exists, the template does not or is in use, or the server does not run.
        """
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
            sql.Identifier(name), sql.Identifier(template or "template1")
        )
        self._execute(statement)
        return self.database_url(name)

    def drop_database(self, name: str) -> None:
        """Drop database `name` if it exists, closing the connections to it."""
        self._execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def __enter__(self) -> Self:
        ours = not self.is_running()
        try:
            self.start()
        except BaseException:
            # Interrupted between launch and return, nobody else would stop it; one that ran before is not ours to stop.
            if ours:
                self.stop("immediate")
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def _socket_port(self) -> int:
        return self._port or _SOCKET_PORT

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep a second process from initialising or starting the same folder meanwhile."""
        self.data_dir.parent.mkdir(parents=True, exist_ok=True)
        with self.data_dir.with_name(f".{self.data_dir.name}.lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def _initialise(self) -> None:
        # In a folder beside it and renamed at the end, so that a killed initdb leaves nothing that looks complete.
        fresh = self.data_dir.with_name(f".{self.data_dir.name}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        self._user.make_private_folder(fresh)
        sync = [] if self._durable else ["--no-sync"]
        options = ["-U", _SUPERUSER, "-A", "trust", "-E", "UTF8", "--locale=C", *sync]
        postgres_programs.run("initdb", "-D", str(fresh), *options, folder=fresh)
        self._user.write(fresh / "pg_hba.conf", _HBA)
        self._user.write(fresh / "tcp_password", secrets.token_urlsafe(24))
        with (fresh / "postgresql.conf").open("a") as conf:
            conf.write("include_if_exists = 'pm.conf'\n")
        fresh.rename(self.data_dir)

    def _launch(self) -> None:
        if self._wanted_port == 0 and self._port is None:
            self._port = _free_port()
        if self.socket_dir != self.data_dir:
            self._user.make_private_folder(self.socket_dir)
        self._user.write(self.data_dir / "pm.conf", self._settings())
        postgres_programs.forget_zombie(self.data_dir, self.socket_dir)
        self._pg_ctl("-t", str(postgres_programs.TIMEOUT_S - 5), "-l", str(self.data_dir / "server.log"), "start")
        if self._wanted_port is not None:
            role = sql.Identifier(_SUPERUSER)
            self._execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(role, sql.Literal(self._password())))

    def _pg_ctl(self, *arguments: str) -> None:
        postgres_programs.run("pg_ctl", "-D", str(self.data_dir), "-w", *arguments, folder=self.data_dir)

    def _settings(self) -> str:
        settings = {
            "listen_addresses": "127.0.0.1" if self._wanted_port is not None else "",
            "port": str(self._socket_port),
            "unix_socket_directories": f'"{self.socket_dir}"',
            "unix_socket_permissions": "0700",
            "shared_buffers": "32MB",
            "timezone": "UTC",
        }
        if not self._durable:
            # Not synchronous_commit: without it a killed server forgets what it confirmed.
            settings |= dict.fromkeys(("fsync", "full_page_writes"), "off")
        lines = [f"{name} = '{value.replace(chr(39), chr(39) * 2)}'\n" for name, value in settings.items()]
        return "".join(lines)

    def _adopt_port(self) -> None:
        """Take over the port of a server that somebody else started, or say that it is not the one asked for."""
        lines = (self.data_dir / "postmaster.pid").read_text().splitlines()
        port, address = int(lines[3]), lines[5].strip()
        if self._wanted_port is not None and (not address or self._wanted_port not in (0, port)):
            wanted = self._wanted_port or "any port"
            raise EmbeddedPostgresError(
                f"A server already runs on {self.data_dir}, but not on the TCP port asked for ({wanted}). "
                "Stop it first."
            )
        self._port = port if address else None

    def _password(self) -> str:
        return (self.data_dir / "tcp_password").read_text()

    def _execute(self, statement: sql.Composed) -> None:
        try:
            with closing(psycopg2.connect(self.url)) as connection:
                # CREATE and DROP DATABASE refuse to run in a transaction.
                connection.autocommit = True
                with connection.cursor() as cursor:
                    cursor.execute(statement)
        except psycopg2.Error as error:
            raise EmbeddedPostgresError(f"The embedded Postgres says: {str(error).strip()}") from error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
