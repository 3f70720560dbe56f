"""A dispatcher that moves one step at a time: it stops before every write, and goes on, dies or lags as told.

It runs in a thread of its own, which hands the turn back and forth with the machine's. Where it stops is in
``stepping_ports``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from pm_dagster.dispatch.ports import ControlPlane

_LONGEST_STEP_SECONDS = 120.0


class Killed(BaseException):
    """The dispatcher's process is gone; nothing that it does from here on reaches anybody."""


class Clock:
    """Seconds that pass only when somebody says so."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        """The moment."""
        return self.now


class Stop(threading.Event):
    """A dispatch's stop request, whose waiting makes the clock go on instead of the test."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def wait(self, timeout: float | None = None) -> bool:
        """Let the time pass."""
        self._clock.now += timeout or 0.0
        return self.is_set()


class SteppedDispatcher:
    """One dispatcher, moved from stop to stop. ``at`` says where it stands; ``error`` what ended it, if something did.

    ``program`` is what it does, given itself.
    """

    def __init__(self, program: Callable[[SteppedDispatcher], None], clock: Clock) -> None:
        self.clock = clock
        self.began = clock.now
        self.at = "start"
        self.done = False
        self.error: BaseException | None = None
        self.killed = False
        self.control: ControlPlane | None = None
        self.identity: int | None = None
        self._program = program
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, name="dispatcher", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._go.acquire()
        try:
            if not self.killed:
                self._program(self)
        except BaseException as error:  # noqa: BLE001 whatever escapes a dispatch is for the oracle
            self.error = error
        self.done = True
        self._back.release()

    def stop_at(self, place: str) -> None:
        """Give the turn away; only in the dispatcher's own thread. Raises Killed when it is not to go on."""
        if self.killed:
            raise Killed(place)
        self.at = place
        self._back.release()
        self._go.acquire()
        if self.killed:
            raise Killed(place)

    def advance(self) -> None:
        """Let it go on to its next stop or its end."""
        if self.done:
            return
        self._go.release()
        assert self._back.acquire(timeout=_LONGEST_STEP_SECONDS), f"the dispatcher hangs after {self.at}"

    def finish(self) -> None:
        """Let it go on to its end."""
        while not self.done:
            self.advance()

    def kill(self) -> None:
        """End it where it stands."""
        self.killed = True
        self.finish()
