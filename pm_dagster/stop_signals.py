"""Stops a dispatch by Ctrl-C or SIGTERM: the signal handlers that `pm` and the cluster's program share."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_on_signal(asked: Callable[[], None] = lambda: None) -> Iterator[threading.Event]:
    """Set an event on SIGINT or SIGTERM while the context is open. A second SIGINT ends the process at once.

    A process may end at any moment: the ledger holds what was sent. A second SIGINT comes from somebody who does not
    want to wait, perhaps for a library that lets no Python code run. Outside the main thread Python takes no handlers,
    and nothing sets the event.

    Args:
        asked: Called in the handler at the first signal.

    Yields:
        The event.
    """
    stop = threading.Event()

    def handle(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if not stop.is_set():
            stop.set()
            asked()

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            # None stands for a handler that was not set from Python; it cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
