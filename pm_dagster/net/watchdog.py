"""A watchdog for a connection: shut its socket down after a time-out.

A peer may take what is sent and never answer. Time-outs of libraries count the pauses between two packets, or do not
count at all; this one counts the whole.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from pm_dagster.logs import fields

_log = logging.getLogger(__name__)


@contextmanager
def shutdown_after(fileno: Callable[[], int], seconds: float, *closed: type[Exception]) -> Iterator[None]:
    """Shut the connection down if what is inside takes longer than ``seconds``.

    The thread that waits on the connection sees it as lost, with the error of its own library.

    Args:
        fileno: Gives the socket's file descriptor when it is asked.
        seconds: The time-out of the whole.
        closed: What ``fileno`` raises when there is no socket any more.
    """
    timer = threading.Timer(seconds, _shut_down, [fileno, seconds, closed])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _shut_down(fileno: Callable[[], int], seconds: float, closed: tuple[type[Exception], ...]) -> None:
    # The owner's own close() may wait for what is under way, or not wake who reads. A duplicate's shutdown does.
    with suppress(OSError, *closed), socket.socket(fileno=os.dup(fileno())) as duplicate:
        duplicate.shutdown(socket.SHUT_RDWR)
        _log.warning("connection shut down", extra=fields(seconds=seconds))
