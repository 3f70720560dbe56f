"""A socket is shut down when its time is over, and only then; one thread does it for all."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from pm_dagster.net.watchdog import Watchdog, shutdown_after

_SOON = 0.1
_LONG = 60.0
_WAIT_SECONDS = 20.0


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a connection, of which nobody sends anything."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(_WAIT_SECONDS)
        yield ours, theirs


def _threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "watchdog"}


def _gone(threads: set[threading.Thread]) -> bool:
    for thread in threads:
        thread.join(_WAIT_SECONDS)
    return not any(thread.is_alive() for thread in threads)


def test_who_waits_longer_sees_a_lost_connection(
    pair: tuple[socket.socket, socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), shutdown_after(pair[0].fileno, _SOON):
        assert pair[0].recv(1) == b""
    (record,) = [record for record in caplog.records if record.name == "pm_dagster.net.watchdog"]
    assert (record.message, record.__dict__["fields"]) == ("connection shut down", {"seconds": _SOON})


def test_a_connection_in_time_stays(pair: tuple[socket.socket, socket.socket]) -> None:
    watchdog = Watchdog()
    with watchdog.limit(pair[0].fileno, _SOON):
        pass
    time.sleep(3 * _SOON)
    pair[1].sendall(b"x")
    assert pair[0].recv(1) == b"x"


def test_a_shorter_time_that_begins_later_is_over_first(pair: tuple[socket.socket, socket.socket]) -> None:
    watchdog = Watchdog()
    other, end = socket.socketpair()
    with other, end, watchdog.limit(other.fileno, _LONG), watchdog.limit(pair[0].fileno, _SOON):
        assert pair[0].recv(1) == b""
        end.sendall(b"x")
        assert other.recv(1) == b"x"
    watchdog.close()


def test_one_thread_watches_one_after_another_and_ends(pair: tuple[socket.socket, socket.socket]) -> None:
    before, watchdog = _threads(), Watchdog()
    seen: set[threading.Thread] = set()
    for _ in range(20):
        with watchdog.limit(pair[0].fileno, _LONG):
            seen |= _threads() - before
    assert len(seen) == 1
    watchdog.close()
    assert _gone(seen)
    with watchdog.limit(pair[0].fileno, _SOON):
        assert pair[0].recv(1) == b"", "a closed watchdog is used again"


def test_the_thread_ends_by_itself(pair: tuple[socket.socket, socket.socket]) -> None:
    before, watchdog = _threads(), Watchdog()
    with watchdog.limit(pair[0].fileno, _SOON):
        started = _threads() - before
    assert len(started) == 1
    assert _gone(started)


def test_a_socket_that_is_closed_by_then_stops_nothing(pair: tuple[socket.socket, socket.socket]) -> None:
    class Closed(Exception):
        """There is no socket any more."""

    def fileno() -> int:
        asked.set()
        raise Closed

    asked, watchdog = threading.Event(), Watchdog(Closed)
    with watchdog.limit(pair[0].fileno, _LONG), watchdog.limit(fileno, _SOON):
        assert asked.wait(_WAIT_SECONDS)
        with watchdog.limit(pair[0].fileno, _SOON):
            assert pair[0].recv(1) == b"", "the thread goes on"
    watchdog.close()
