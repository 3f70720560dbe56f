"""Child processes of the sandbox: started in groups of their own and ended with all they started, or when we die.

Put here: starting, waiting for a port, ending. Keep out: what is started.
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

_PATIENCE_SECONDS = 15.0
_LIFELINE = Path(__file__).with_name("lifeline.py")


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
                [sys.executable, "-I", "-S", str(_LIFELINE), *command],
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
            # Not communicate(): it would close the lifeline.
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
        deadline = time.monotonic() + _PATIENCE_SECONDS
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
    """The preferred port of the loopback interface if it is free, else another."""
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
