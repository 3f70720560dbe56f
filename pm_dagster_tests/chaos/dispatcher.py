"""Real dispatches, started fast: a server process has imported the program, each dispatch is a fork of it.

Put here: starting `pm` with an environment of its own and its output in files, waiting for it, killing it. Keep out:
what it runs against (``deployment.py``). The fork runs the same function as the installed command `pm`.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import connection, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

_PATIENCE_SECONDS = 300.0
#: What `pm dispatch` imports on its way, so that a fork does not have to.
_IMPORTED = [
    "pm_dagster.cli.app",
    "pm_dagster.cli.dispatch",
    "pm_dagster.cli.plan",
    "pm_dagster.cli.redrive",
    "pm_dagster.config.credentials",
    "pm_dagster.ledger.control_plane",
    "pm_dagster.databricks.sign_in",
    "pm_dagster.databricks.runs",
]
_context = get_context("forkserver")
_context.set_forkserver_preload(_IMPORTED)


@dataclass
class Dispatcher:
    """A running or finished `pm`."""

    process: BaseProcess
    out_file: Path
    err_file: Path
    over: bool = False

    @property
    def pid(self) -> int:
        """The process id."""
        assert self.process.pid is not None
        return self.process.pid

    @property
    def out(self) -> str:
        """What it wrote to its standard output so far."""
        return self.out_file.read_text(encoding="utf-8", errors="replace")

    @property
    def err(self) -> str:
        """What it wrote to its standard error so far."""
        return self.err_file.read_text(encoding="utf-8", errors="replace")

    def wait(self, seconds: float = _PATIENCE_SECONDS) -> int:
        """Wait for its end; gives the exit code, negative for a signal. The limit only lets a failing test end."""
        self.process.join(seconds)
        code = self.process.exitcode
        assert code is not None, f"pm (process {self.pid}) did not end; it wrote: {self.err}"
        self.over = True
        return code

    @property
    def alive(self) -> bool:
        """Whether it still runs; unlike the process object's answer, this may be asked in any thread."""
        # A sibling that was forked meanwhile may hold the sentinel's other end: once waited for, it says no more.
        return not self.over and not connection.wait([self.process.sentinel], timeout=0)

    def kill(self) -> None:
        """SIGKILL, and return when the process is gone; may be called in any thread, and after its end."""
        if self.alive:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            connection.wait([self.process.sentinel], timeout=_PATIENCE_SECONDS)


def start(folder: Path, environment: Mapping[str, str], *arguments: str) -> Dispatcher:
    """Start `pm` with these arguments and exactly this environment; its output goes to new files in the folder."""
    return fork(folder, partial(_run, arguments, dict(environment)))


def fork(folder: Path, program: Callable[[str, str], None]) -> Dispatcher:
    """Start a program in a process of its own; it is given the names of new files for its output and its errors."""
    number = len(list(folder.glob("*.out")))
    out, err = folder / f"{number}.out", folder / f"{number}.err"
    out.touch()
    err.touch()
    process = _context.Process(target=program, args=(str(out), str(err)))
    process.start()
    return Dispatcher(process, out, err)


def become(environment: Mapping[str, str], out: str, err: str) -> None:
    """In the fork: take on this environment and write to these files."""
    for number, name in ((1, out), (2, err)):
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)


def _run(arguments: tuple[str, ...], environment: dict[str, str], out: str, err: str) -> None:
    """In the fork: be `pm`."""
    become(environment, out, err)
    sys.argv = ["pm", *arguments]
    from pm_dagster.cli.app import main  # noqa: PLC0415 the process that starts forks need not import the program

    main()
