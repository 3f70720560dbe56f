"""Keeps a task's process: starts the launcher, and sees to it that nothing of it outlives the task or the workspace.

Put here: only that, with the standard library alone; it is started by path. Its standard input is a pipe that the
workspace holds: when that is closed, by the workspace or by the kernel because the workspace was killed, everything is
killed at once. Its standard output is the task's output, its standard error tells the workspace how the task ended.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

# linux/prctl.h
_PR_SET_CHILD_SUBREAPER = 36
_LIFELINE, _OUTPUT, _REPORT = 0, 1, 2


def main() -> None:
    """Run ``command``; ``folder`` is the task's own and is removed when the workspace is gone."""
    folder, *command = sys.argv[1:]
    # Ignored signals would be inherited by the task, handled ones are not.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    wake, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    children = _adopt()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT)  # noqa: S603  # ours
    os.close(_OUTPUT)
    alone = not _ended(child, wake)
    if alone:
        child.kill()
        child.wait()
    _kill_all(children)
    if alone:
        shutil.rmtree(folder, ignore_errors=True)
    os.write(_REPORT, str(child.returncode).encode())


def _ended(child: subprocess.Popen[bytes], wake: int) -> bool:
    """Wait until the child has ended; False when the workspace wants its end."""
    while child.poll() is None:
        ready, _, _ = select.select([_LIFELINE, wake], [], [])
        if wake in ready:
            os.read(wake, 512)
        if _LIFELINE in ready and not os.read(_LIFELINE, 1):
            return False
    return True


def _adopt() -> Path | None:
    """Become the parent of every orphan below us, also of those that left our process group; Linux only."""
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
    main()
