"""Runs a command that must not outlive whoever started it; started by path, by ``processes.py``.

``lifeline.py COMMAND...``: the starter holds our standard input, and when that closes, even because the starter was
killed, the whole process group ends. Put here: that. Keep out: everything but the standard library.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

_PATIENCE_SECONDS = 5.0


def main() -> int:
    """Run the command to its end; gives its exit status."""
    # The command is in our group and gets the signals as well: we end when it does.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda _number, _frame: None)
    cut = threading.Event()
    watcher = threading.Thread(target=_watch, args=[cut], daemon=True)
    with subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL) as command:  # noqa: S603 the starter's own command
        watcher.start()
        status = command.wait()
    if cut.is_set():
        # What the command started may still be there.
        watcher.join()
    return status


def _watch(cut: threading.Event) -> None:
    """Wait until nobody holds our standard input, then end the group."""
    while os.read(0, 1024):
        pass
    cut.set()
    os.killpg(0, signal.SIGTERM)
    time.sleep(_PATIENCE_SECONDS)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main() and 1)
