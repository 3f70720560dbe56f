"""Supervises one command, so that nothing of it outlives the command or whoever started it. Run by path.

``supervisor.py [--grace SECONDS] [--report] [--remove FOLDER] COMMAND...``

The starter holds our standard input. When that closes, by the starter or by the kernel because the starter was killed,
the process group gets SIGTERM, and after ``--grace`` seconds (0: at once, without SIGTERM) all that is left gets
SIGKILL. On Linux we are a subreaper (``prctl(2)``, PR_SET_CHILD_SUBREAPER): daemons that left the group end too.
Signals to the group reach the command as well; we end when it does. Only the standard library is used: a start must be
quick.

``--report``: the command's return code, as ``subprocess`` counts it, is written to standard error, which is then ours
alone; the command's errors go to its standard output. ``--remove``: a folder that is removed when the starter is gone.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

# linux/prctl.h
_PR_SET_CHILD_SUBREAPER = 36
_STARTER, _OUTPUT, _REPORT = 0, 1, 2
_LOOKS_EACH_SECONDS = 0.02


def main() -> int:
    """Run the command to its end; gives 0 when it ended well, else 1."""
    options = _options()
    # Ignored signals would be inherited by the command, handled ones are not.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    wake, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    children = _become_subreaper()
    errors = subprocess.STDOUT if options.report else None
    command = subprocess.Popen(options.command, stdin=subprocess.DEVNULL, stderr=errors)  # noqa: S603 the starter's
    if options.report:
        os.close(_OUTPUT)
    ended = _wait(command, wake)
    if not ended:
        _terminate(command, children, options.grace)
    _kill_all(children)
    if not ended and options.remove:
        shutil.rmtree(options.remove, ignore_errors=True)
    if options.report:
        os.write(_REPORT, str(command.returncode).encode())
    return 1 if command.returncode else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--grace", type=float, default=0.0)
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--remove")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    return parser.parse_args()


def _wait(command: subprocess.Popen[bytes], wake: int) -> bool:
    """Wait until the command has ended; False when the starter is gone, or wants its end, before that."""
    while command.poll() is None:
        ready, _, _ = select.select([_STARTER, wake], [], [])
        if wake in ready:
            os.read(wake, 512)
        if _STARTER in ready and not os.read(_STARTER, 1):
            return False
    return True


def _terminate(command: subprocess.Popen[bytes], children: Path | None, grace: float) -> None:
    """Ask the group to end, give it ``grace`` seconds, and kill the command."""
    if grace > 0:
        os.killpg(0, signal.SIGTERM)
        until = time.monotonic() + grace
        while time.monotonic() < until and _something_lives(command, children):
            time.sleep(_LOOKS_EACH_SECONDS)
    command.kill()
    command.wait()
    if children is None and grace > 0:
        # Without a subreaper nobody but the group is known; we are in it, and end with it.
        os.killpg(0, signal.SIGKILL)


def _something_lives(command: subprocess.Popen[bytes], children: Path | None) -> bool:
    if command.poll() is None or children is None:
        return True
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _become_subreaper() -> Path | None:
    """Become the parent of every orphan below us; gives the file that lists our children, None on other systems."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    if not children.exists():
        return None
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    return children


def _kill_all(children: Path | None) -> None:
    """Kill our children; theirs become ours, until there are none."""
    while children is not None:
        for number in children.read_text().split():
            os.kill(int(number), signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


if __name__ == "__main__":
    sys.exit(main())
