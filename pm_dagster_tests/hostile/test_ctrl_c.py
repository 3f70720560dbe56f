"""Ctrl-C at any time: before a pass it ends the program at once, in a pass once cleanly and twice at once."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pm_dagster_tests.cli.shell import Shell
from pm_dagster_tests.ledger.postgres_control_table import eventually


@contextmanager
def _silent() -> Iterator[tuple[int, threading.Event]]:
    """A port that takes connections and never says a word; the event is set once somebody came."""
    came = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        kept: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    kept.append(listening.accept()[0])
                except OSError:
                    return
                came.set()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield listening.getsockname()[1], came
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()
        for each in kept:
            each.close()


@pytest.mark.parametrize("waits_for", ["database", "secret"])
def test_ctrl_c_before_the_pass_ends_it_at_once_and_without_a_word(shell: Shell, waits_for: str) -> None:
    shell.add()
    with _silent() as (port, came):
        silent = {
            "database": {"PM_POSTGRES_URL": f"postgresql://u@127.0.0.1:{port}/d"},
            "secret": {
                "PM_POSTGRES_PASSWORD": "databricks-secret://s/k",
                "DATABRICKS_HOST": f"http://127.0.0.1:{port}",
            },
        }
        with shell.start("dispatch", **silent[waits_for]) as process:
            assert came.wait(60)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (-signal.SIGINT, "", "")


def test_a_second_ctrl_c_ends_the_pass_at_once_and_loses_nothing(shell: Shell) -> None:
    shell.add(3)
    shell.workspace.faults.add("run-now", "hang", when="after", seconds=50, count=2)
    with shell.start("dispatch", PM_CONCURRENCY="2") as process:
        eventually(lambda: len(list(shell.workspace.state.runs())) == 2, "both calls are under way")
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert "stopping" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=120)
    assert process.returncode == -signal.SIGINT
    shell.json("dispatch")
    assert shell.statuses() == {"SCHEDULED": 3}
    assert sorted(shell.runs_per_row()) == [1, 1, 1]
