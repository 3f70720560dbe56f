"""One program as a process group of its own: started, followed to its end, ended before that when asked.

``executor.py`` decides what its end means for the task.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pm_dagster.sandbox.processes import supervised
from pm_dagster.sandbox.workspace.execution.outputs import Output
from pm_dagster.sandbox.workspace.execution.preparation import Program
from pm_dagster.sandbox.workspace.model import Json

_HERE = Path(__file__).parent
_CHUNK = 65536
# The supervisor is gone and all that it could reach was killed: what holds the pipe now is not waited for.
_DRAIN_SECONDS = 1.0
# A supervisor that is to kill its task does so at once.
_SUPERVISOR_SECONDS = 2.0


@dataclass(frozen=True)
class Ended:
    """How a program ended.

    ``stopped``: why it was ended before its time, None if it was not; ``returncode`` as in subprocess, None if the
    supervisor could not tell; ``result`` is what the launcher left: None when it had no time to, empty when all went
    well.
    """

    stopped: str | None
    returncode: int | None
    result: Json | None


class Process:
    """A running program. ``wait`` is for one thread, ``end`` for any."""

    def __init__(self, program: Program, output: Output, grace: float) -> None:
        """Start it; ``grace`` is the time in seconds between SIGTERM and SIGKILL.

        Raises:
            OSError, ValueError: When the system refuses, say for an argument or a variable that cannot be.
        """
        self._output, self._grace = output, grace
        self._lock = threading.Lock()
        self._stopped: str | None = None
        self._over = False
        self._timer: threading.Timer | None = None
        self._folder = Path(tempfile.mkdtemp(prefix="pm-task-"))
        try:
            self._process = _start(program, self._folder)
        except (OSError, ValueError):
            shutil.rmtree(self._folder, ignore_errors=True)
            raise

    def wait(self, deadline: float | None) -> Ended:
        """Follow the program until it has ended; at the deadline (``time.monotonic``) it is stopped as "timeout"."""
        report = bytearray()
        try:
            self._follow(deadline, report)
            result = _load(self._folder / "result.json")
        finally:
            self._clear_up()
        return Ended(self._stopped, _number(report), result)

    def end(self, why: str, *, at_once: bool = False) -> None:
        """Ask the program and all it started to end, and kill them when they do not; the first reason counts."""
        with self._lock:
            if self._stopped is None:
                self._stopped = why
                self._signal(signal.SIGTERM)
                self._after(0.0 if at_once else self._grace, self._kill)

    def _follow(self, deadline: float | None, report: bytearray) -> None:
        """Copy the output until the supervisor, and all that it supervises, is gone."""
        output, reports = _pipe(self._process.stdout), _pipe(self._process.stderr)
        with selectors.DefaultSelector() as selector:
            selector.register(output, selectors.EVENT_READ, self._output.write)
            selector.register(reports, selectors.EVENT_READ, report.extend)
            while reports.fileno() not in _copy(selector, deadline):
                if deadline is not None and time.monotonic() >= deadline:
                    self.end("timeout")
                    deadline = None
            with self._lock:
                self._signal(signal.SIGKILL)
            drained = time.monotonic() + _DRAIN_SECONDS
            while selector.get_map() and time.monotonic() < drained:
                _copy(selector, drained)

    def _kill(self) -> None:
        """Close the supervisor's standard input: it kills everything, beyond the process group too."""
        with self._lock:
            _pipe(self._process.stdin).close()
            # A supervisor that was stopped would not notice.
            self._signal(signal.SIGCONT)
            self._after(_SUPERVISOR_SECONDS, self._kill_group)

    def _kill_group(self) -> None:
        with self._lock:
            self._signal(signal.SIGKILL)

    def _after(self, seconds: float, step: Callable[[], None]) -> None:
        if not self._over:
            self._timer = threading.Timer(seconds, step)
            self._timer.daemon = True
            self._timer.start()

    def _signal(self, number: signal.Signals) -> None:
        # The supervisor leads the group; once it has been waited for, the number may be somebody else's.
        if not self._over:
            with contextlib.suppress(OSError):
                os.killpg(self._process.pid, number)

    def _clear_up(self) -> None:
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            _pipe(self._process.stdin).close()
            self._process.wait()
            self._over = True
        for pipe in (self._process.stdout, self._process.stderr):
            _pipe(pipe).close()
        shutil.rmtree(self._folder, ignore_errors=True)


def _start(program: Program, folder: Path) -> subprocess.Popen[bytes]:
    home, temporary = folder / "home", folder / "tmp"
    home.mkdir()
    temporary.mkdir()
    # Nothing else of our own environment: the program must get its settings and secrets from its job alone.
    base = {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8", "HOME": str(home), "TMPDIR": str(temporary)}
    # No bytecode: in the workspace is what was put there.
    launcher = [sys.executable, "-P", "-B", "-X", "utf8", str(_HERE / "launcher.py"), str(folder / "result.json")]
    return subprocess.Popen(  # noqa: S603  # executing what a developer deployed is what this is for
        supervised([*launcher, str(program.file), *program.arguments], "--report", "--remove", str(folder)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        cwd=program.file.parent,
        env={**base, **program.environment},
        start_new_session=True,
    )


def _copy(selector: selectors.BaseSelector, until: float | None) -> set[int]:
    """Copy what is there, or wait until something is; the pipes that came to their end."""
    ended = set[int]()
    for key, _ in selector.select(None if until is None else max(0.0, until - time.monotonic())):
        chunk = os.read(key.fd, _CHUNK)
        if chunk:
            key.data(chunk)
        else:
            selector.unregister(key.fileobj)
            ended.add(key.fd)
    return ended


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None  # noqa: S101  # each of them was asked for
    return stream


def _number(report: bytearray) -> int | None:
    try:
        return int(report)
    except ValueError:
        return None


def _load(file: Path) -> Json | None:
    try:
        result = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    return result if isinstance(result, dict) else None
