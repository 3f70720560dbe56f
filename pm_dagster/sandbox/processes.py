"""Child processes of the sandbox: each in a process group of its own, ended with all it started, or when we die.

``supervised`` is the one way in which the sandbox starts a process; ``supervisor.py`` runs beside each.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from pm_dagster.errors import ProcessManagerError

#: What the processes get to end by themselves: asked by us, and asked by their supervisor because we are gone.
_GRACE_SECONDS = 15.0
_ORPHANS_GRACE_SECONDS = 5.0
_SUPERVISOR = Path(__file__).with_name("supervisor.py")


def supervised(command: Sequence[str], *options: str) -> list[str]:
    """The command with its supervisor before it; the starter must hold a pipe to its standard input.

    Args:
        command: What is to run.
        options: ``--grace``, ``--report`` and ``--remove``, as ``supervisor.py`` describes them.
    """
    return [sys.executable, "-I", "-S", str(_SUPERVISOR), *options, *command]


class Children:
    """Processes that end when the block is left, each with its whole group."""

    def __init__(self, environment: Mapping[str, str], logs: Path) -> None:
        self._environment = dict(environment)
        self._logs = logs
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()

    def start(self, name: str, command: Sequence[str]) -> None:
        """Start a process; its output goes to a file of its name."""
        self._logs.mkdir(parents=True, exist_ok=True)
        with (self._logs / f"{name}.log").open("wb") as log:
            self._running[name] = subprocess.Popen(  # noqa: S603 our own commands
                supervised(command, "--grace", str(_ORPHANS_GRACE_SECONDS)),
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def run(self, name: str, command: Sequence[str]) -> None:
        """Run a process to its end. Raises ProcessManagerError when it fails."""
        self.start(name, command)
        with self._running[name] as process:
            # Not communicate(): it would close the standard input, and so end the process.
            if process.wait() != 0:
                raise ProcessManagerError(f"{name} of the sandbox failed; see {self.log_of(name)}")
        del self._running[name]

    def ended(self) -> str | None:
        """The name of a process that ended by itself, if one did."""
        return next((name for name, p in self._running.items() if p.poll() is not None), None)

    def log_of(self, name: str) -> Path:
        """The file with the output of a process."""
        return self._logs / f"{name}.log"

    def end(self) -> None:
        """Ask all groups to end, then make them."""
        for process in self._running.values():
            _signal(process, signal.SIGTERM)
        deadline = time.monotonic() + _GRACE_SECONDS
        for process in self._running.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, deadline - time.monotonic()))
            # What the process started may outlive it.
            _signal(process, signal.SIGKILL)
            process.wait()
            if process.stdin is not None:
                process.stdin.close()
        self._running.clear()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return


def free_port(preferred: int) -> int:
    """The preferred port of the loopback interface if it is free, else any; 0 prefers none."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    return preferred


def answers(port: int) -> bool:
    """Whether something listens on the port of the loopback interface."""
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0
