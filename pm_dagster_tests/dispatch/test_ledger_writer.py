"""How long a dispatch waits for its database: for a restart, and not for ever."""

from __future__ import annotations

import threading

import pytest

from pm_dagster.config.settings import Settings
from pm_dagster.dispatch.ledger_writer import LedgerWriter
from pm_dagster.errors import ControlPlaneUnavailable
from pm_dagster_tests.fakes.control_plane import InMemoryControlPlane, InMemoryDatabase


class _Time(threading.Event):
    """A clock, and a stop request whose waiting makes it go on."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def wait(self, timeout: float | None = None) -> bool:
        self.now += timeout or 0.0
        return self.is_set()


class _Away(InMemoryControlPlane):
    """A database that is away: each try takes ``seconds`` to fail, ``tries`` of them."""

    def __init__(self, time: _Time, seconds: float, tries: int) -> None:
        super().__init__(InMemoryDatabase(), Settings())
        self.left, self.calls = tries, 0
        self._time, self._seconds = time, seconds

    def heartbeat(self) -> None:
        self._time.now += self._seconds
        self.calls += 1
        self.left -= 1
        if self.left >= 0:
            raise ControlPlaneUnavailable("away")
        super().heartbeat()


def _flushed(seconds: float, tries: int) -> tuple[_Away, _Time]:
    time = _Time()
    control = _Away(time, seconds, tries)
    writer = LedgerWriter(control, time, time)
    try:
        writer.flush()
    except ControlPlaneUnavailable:
        assert control.left >= 0
    else:
        assert control.left < 0
    return control, time


def test_a_restart_is_waited_for() -> None:
    control, time = _flushed(seconds=0.0, tries=7)
    assert control.calls == 8
    assert time.now == pytest.approx(1015.7)


@pytest.mark.parametrize(("seconds", "tries"), [(70.0, 1), (31.0, 1), (15.0, 2), (5.0, 6)])
def test_where_each_try_is_long_in_failing_there_are_fewer(seconds: float, tries: int) -> None:
    """A write that fails after half a minute is given up with the first try that does: the deadline is near."""
    control, time = _flushed(seconds=seconds, tries=99)
    assert control.calls == tries
    assert time.now - 1000.0 <= max(seconds, 38.0)
