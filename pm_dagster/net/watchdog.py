"""An end to waiting for a peer that takes what is sent and never answers.

Put here: breaking a connection from beside. Keep out: which connection, and what its owner makes of the break.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


@contextmanager
def time_limit(fileno: Callable[[], int], seconds: float, *closed: type[Exception]) -> Iterator[None]:
    """Break the connection if what is inside takes longer than ``seconds``; who waits on it sees it as lost.

    ``fileno`` gives its file descriptor when asked, or raises one of ``closed`` when it has none any more.
    """
    timer = threading.Timer(seconds, _break, [fileno, closed])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _break(fileno: Callable[[], int], closed: tuple[type[Exception], ...]) -> None:
    # The owner's own close() may wait for what is under way, or not wake who reads. A duplicate's shutdown does.
    with suppress(OSError, *closed), socket.socket(fileno=os.dup(fileno())) as duplicate:
        duplicate.shutdown(socket.SHUT_RDWR)
