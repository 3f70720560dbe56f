"""A pass that is asked to stop, by Ctrl-C or SIGTERM. Put here: the handlers. Keep out: what stopping means."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_on_signal(asked: Callable[[], None] = lambda: None) -> Iterator[threading.Event]:
    """An event that SIGINT or SIGTERM sets while the context is open; a second SIGINT ends the process at once.

    ``asked`` is called in the handler, once. The ledger is made for a process that ends anywhere, and a second SIGINT
    comes from somebody who does not want to wait, perhaps for a library that lets no Python code run. Outside the main
    thread, where Python takes no handlers, nothing sets the event.
    """
    stop = threading.Event()

    def ask(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if not stop.is_set():
            stop.set()
            asked()

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            # None: a handler that was not set from Python cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
