"""A watchdog for connections: shut a socket down after a time-out.

A peer may take what is sent and never answer. Time-outs of libraries count the pauses between two packets, or do not
count at all; this one counts the whole.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from pm_dagster.logs import fields

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class _Limit:
    """A socket that is watched, the time-out in seconds and when it is over."""

    fileno: Callable[[], int]
    seconds: float
    deadline: float


class Watchdog:
    """One thread that watches any number of sockets, one after another or at the same time. Thread-safe.

    The thread starts with the first limit. It does not wake up for limits that are kept, and ends by itself when the
    earliest deadline that it waits for has passed and nothing is watched any more.
    """

    def __init__(self, *closed: type[Exception]) -> None:
        """Watch sockets.

        Args:
            closed: What ``fileno`` of a limit raises when there is no socket any more.
        """
        self._closed = closed
        self._changed = threading.Condition()
        self._limits: set[_Limit] = set()
        self._wakes_at = 0.0
        self._ends = False
        self._thread: threading.Thread | None = None

    @contextmanager
    def limit(self, fileno: Callable[[], int], seconds: float) -> Iterator[None]:
        """Shut the socket down if what is inside takes longer than ``seconds``.

        The thread that waits on the socket sees a lost connection, with the error of its own library.

        Args:
            fileno: Gives the socket's file descriptor when the time is over.
            seconds: The time-out of the whole.
        """
        limit = _Limit(fileno, seconds, time.monotonic() + seconds)
        with self._changed:
            self._limits.add(limit)
            self._ends = False
            # A forked process has the object, but not the thread.
            if self._thread is None or not self._thread.is_alive():
                self._wakes_at = limit.deadline
                self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
                self._thread.start()
            elif limit.deadline < self._wakes_at:
                self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._limits.discard(limit)

    def close(self) -> None:
        """End the thread unless something is watched. A later limit starts another one."""
        with self._changed:
            self._ends = True
            self._changed.notify()

    def _watch(self) -> None:
        with self._changed:
            # Without limits too, until it wakes up: the next transaction finds the thread of the last one.
            while self._limits or not (self._ends or time.monotonic() >= self._wakes_at):
                now = time.monotonic()
                for limit in [each for each in self._limits if each.deadline <= now]:
                    self._limits.discard(limit)
                    # Under the lock: once its block is left, the number may be that of another socket.
                    self._shut_down(limit)
                self._wakes_at = min((each.deadline for each in self._limits), default=self._wakes_at)
                self._changed.wait(max(0.0, self._wakes_at - now))
            self._thread = None

    def _shut_down(self, limit: _Limit) -> None:
        # The owner's own close() may wait for what is under way, or not wake who reads. A duplicate's shutdown does.
        with suppress(OSError, *self._closed), socket.socket(fileno=os.dup(limit.fileno())) as duplicate:
            duplicate.shutdown(socket.SHUT_RDWR)
            _log.warning("connection shut down", extra=fields(seconds=limit.seconds))


@contextmanager
def shutdown_after(fileno: Callable[[], int], seconds: float, *closed: type[Exception]) -> Iterator[None]:
    """``Watchdog.limit`` with a watchdog for this one time."""
    watchdog = Watchdog(*closed)
    try:
        with watchdog.limit(fileno, seconds):
            yield
    finally:
        watchdog.close()
