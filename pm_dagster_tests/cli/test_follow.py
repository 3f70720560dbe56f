"""`pm dispatch --follow` in real processes: rows that come, kills, stops, a lost connection, two at once."""

from __future__ import annotations

import json
import signal
import time

import pytest

from pm_dagster_tests.cli.shell import Shell
from pm_dagster_tests.ledger.postgres_control_table import eventually

_IDLE = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction'"
_LOCKS = """
SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
WHERE a.datname = current_database() AND a.pid <> pg_backend_pid() AND l.locktype <> 'advisory'"""


def _all_scheduled(shell: Shell, rows: int) -> None:
    eventually(lambda: shell.statuses() == {"SCHEDULED": rows}, f"{rows} rows are SCHEDULED")


def test_rows_are_started_soon_after_they_come_and_a_signal_ends_it_cleanly(shell: Shell) -> None:
    process = shell.start("dispatch", "--follow", "--json")
    shell.add(1)
    _all_scheduled(shell, 1)
    took = []
    for number in range(2, 8):
        before = shell.workspace.log.count("run-now")
        began = time.monotonic()
        shell.add(1)
        while shell.workspace.log.count("run-now") == before and time.monotonic() - began < 20:
            time.sleep(0.01)
        took.append(time.monotonic() - began)
        _all_scheduled(shell, number)
        time.sleep(0.3)
    # A second at most until it looks; the rest is the machine's.
    assert sorted(took)[len(took) // 2] < 3, took
    time.sleep(4)
    assert shell.sql(_IDLE) == [(0,)]
    assert shell.sql(_LOCKS) == [(0,)]
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert "taking the rows of public.mm_run_wait_vw as they come" in err
    assert "stopped on request" in err
    reports = [json.loads(line) for line in out.splitlines()]
    assert sum(report["scheduled"] for report in reports) == 7
    assert shell.runs_per_row() == [1] * 7
    assert shell.sql("SELECT DISTINCT ended_as FROM process_manager.dispatcher") == [("done",)]


def test_one_that_is_killed_while_it_waits_is_continued_by_another(shell: Shell) -> None:
    shell.add(3)
    first = shell.start("dispatch", "--follow", "--json", PM_RATE_RUN_NOW="0")
    _all_scheduled(shell, 3)
    first.kill()
    first.communicate()
    shell.add(2)
    assert shell.json("dispatch")["scheduled"] == 2
    assert shell.runs_per_row() == [1] * 5


def test_two_that_follow_take_each_row_once(shell: Shell) -> None:
    both = [shell.start("dispatch", "--follow", "--json") for _ in range(2)]
    for _ in range(10):
        shell.add(3)
        time.sleep(0.2)
    _all_scheduled(shell, 30)
    time.sleep(3)
    for process in both:
        process.send_signal(signal.SIGINT)
    answers = [process.communicate(timeout=30) for process in both]
    assert [process.returncode for process in both] == [0, 0], answers
    counts = [json.loads(line)["scheduled"] for out, _ in answers for line in out.splitlines()]
    assert sum(counts) == 30
    assert shell.runs_per_row() == [1] * 30


def test_a_lost_connection_is_outlasted(shell: Shell) -> None:
    process = shell.start("dispatch", "--follow", "--json")
    shell.add(1)
    _all_scheduled(shell, 1)
    for number in range(2, 5):
        shell.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        shell.add(1)
        _all_scheduled(shell, number)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert shell.runs_per_row() == [1] * 4


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_a_pass_that_lingers_takes_what_comes_and_may_end_at_any_moment(shell: Shell, end: signal.Signals) -> None:
    shell.add(1)
    process = shell.start("dispatch", "--json", PM_LINGER_SECONDS="60")
    _all_scheduled(shell, 1)
    shell.add(2)
    _all_scheduled(shell, 3)
    process.send_signal(end)
    out, err = process.communicate(timeout=30)
    if end is signal.SIGTERM:
        assert process.returncode == 0, err
        assert json.loads(out)["scheduled"] == 3
    shell.add(1)
    assert shell.json("dispatch")["scheduled"] == 1
    assert shell.runs_per_row() == [1] * 4
