"""PgBouncer, as Debian packages it, between a test and the embedded server.

Put here: starting it with a configuration of its own, and what to do where it is not installed. Keep out: expectations.
Its settings: https://www.pgbouncer.org/config.html (written for 1.18 of Debian 12; 1.21 and later know more).
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

import psycopg2
import pytest

from pm_dagster.sandbox.postgres import EmbeddedPostgres, ServerUser
from pm_dagster.sandbox.processes import free_port
from pm_dagster_tests.ledger.postgres_control_table import eventually

_USER = "postgres"
_ABSENT = (
    "PgBouncer is not there, so nothing behind a pooler is tested here: `apt-get install pgbouncer` brings it, without"
    " root `.ci/pgbouncer` does; in CI PM_ALLOW_SKIPS=true lets these tests be left out"
)
#: Where ``.ci/pgbouncer`` unpacks it, and what it needs.
_UNPACKED = Path(__file__).parents[2] / ".pgbouncer"
_PLACES = ("/usr/sbin", "/usr/local/sbin", str(_UNPACKED / "usr" / "sbin"))
#: As the tests begin: later their environment is cleared of it.
_MUST_BE_THERE = os.environ.get("CI") == "true" and not os.environ.get("PM_ALLOW_SKIPS")


class PoolerAbsentWarning(UserWarning):
    """Part of the proof is left out on this machine."""


@dataclass(frozen=True)
class Pooler:
    """A running PgBouncer."""

    port: int
    log: Path
    process: subprocess.Popen[bytes]

    def url(self, database: str) -> str:
        """The libpq URL of a database of the server behind it."""
        return f"postgresql://{_USER}@127.0.0.1:{self.port}/{quote(database, safe='')}"

    def servers(self) -> list[int]:
        """The process ids of the server's backends that it keeps."""
        with closing(psycopg2.connect(self.url("pgbouncer"))) as connection:
            # Its console knows no transactions.
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("SHOW SERVERS")
                column = [each.name for each in cursor.description or ()].index("remote_pid")
                return [int(row[column]) for row in cursor.fetchall()]


def program() -> str:
    """Where PgBouncer is.

    Where it is not, the test fails in CI, unless PM_ALLOW_SKIPS is set; elsewhere it is left out with a warning that
    the summary shows.
    """
    found = shutil.which("pgbouncer", path=os.pathsep.join((os.environ.get("PATH", ""), *_PLACES)))
    if found is None:
        if _MUST_BE_THERE:
            pytest.fail(_ABSENT)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn(_ABSENT, PoolerAbsentWarning, stacklevel=2)
        pytest.skip(_ABSENT)
    return found


@contextmanager
def pooler(server: EmbeddedPostgres, folder: Path, mode: str, **settings: str | int) -> Iterator[Pooler]:
    """PgBouncer on a free port of 127.0.0.1 in pool ``mode``; ``settings`` are further lines of its ini."""
    user = ServerUser.current()
    place = folder / f"pgbouncer-{mode}"
    user.make_private_folder(place)
    port = free_port(0)
    log = place / "pgbouncer.log"
    user.write(place / "pgbouncer.ini", _ini(server, port, log, {"pool_mode": mode, **settings}))
    command = user.command([program(), "-q", str(place / "pgbouncer.ini")], place)
    libraries = os.pathsep.join(str(each) for each in sorted(_UNPACKED.glob("usr/lib/*-linux-*")))
    environment = {**os.environ, **({"LD_LIBRARY_PATH": libraries} if libraries else {})}
    nothing = subprocess.DEVNULL
    with subprocess.Popen(command, env=environment, stdin=nothing, stdout=nothing, stderr=nothing) as it:
        try:
            running = Pooler(port, log, it)
            eventually(lambda: it.poll() is not None or _listens(port), "PgBouncer listens")
            assert it.poll() is None, log.read_text() if log.exists() else "PgBouncer ended without a log"
            yield running
        finally:
            it.kill()


def _ini(server: EmbeddedPostgres, port: int, log: Path, settings: dict[str, str | int]) -> str:
    host, number = server.url.partition("host=")[2].partition("&port=")[::2]
    lines = {
        "listen_addr": "127.0.0.1",
        "listen_port": port,
        "unix_socket_dir": "",
        "auth_type": "any",
        "admin_users": _USER,
        "logfile": log,
        **settings,
    }
    databases = f"[databases]\n* = host={unquote(host)} port={number} user={_USER}\n"
    return databases + "[pgbouncer]\n" + "".join(f"{name} = {value}\n" for name, value in lines.items())


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
