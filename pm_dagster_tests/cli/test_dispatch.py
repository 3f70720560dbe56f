"""`pm dispatch`: its JSON is a contract, and nothing runs twice."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest

from pm_dagster_tests.cli.shell import JOB, UNKNOWN_JOB, Shell

_UNPACED = {"PM_RATE_RUN_NOW": "0", "PM_RATE_REPAIR": "0", "PM_RATE_GET_RUN": "0"}


def test_report_of_new_and_repair_rows(shell: Shell) -> None:
    shell.add(6)
    shell.add_repairs(3)
    shell.add_repairs(1, repairs=4)

    report = shell.json("dispatch")

    assert report["read"] == 10
    assert report["new"] == {"accepted": 6, "adopted": 0, "deferred": 0, "quarantined": 0}
    assert report["repair"] == {"accepted": 4, "adopted": 0, "deferred": 0, "quarantined": 0}
    assert report["scheduled"] == 10
    assert report["seconds"] > 0
    log = shell.workspace.log
    assert [log.count(name) for name in ("run-now", "runs/get", "runs/repair")] == [6, 4, 4]
    assert shell.statuses() == {"SCHEDULED": 10}


def test_keys_of_the_report(shell: Shell) -> None:
    assert list(shell.json("dispatch")) == [
        "read", "taken_over", "new", "repair", "scheduled", "withdrawn", "left", "calls", "throttled",
        "api_seconds", "seconds",
    ]  # fmt: skip


def test_two_at_once_run_nothing_twice(shell: Shell) -> None:
    shell.add(200)
    both = [shell.start("dispatch", "--json", **_UNPACED) for _ in range(2)]
    answers = [process.communicate(timeout=120) for process in both]

    assert [process.returncode for process in both] == [0, 0], answers
    assert sum(json.loads(out)["scheduled"] for out, _ in answers) == 200
    assert shell.runs_per_row() == [1] * 200
    assert shell.statuses() == {"SCHEDULED": 200}


@pytest.mark.parametrize("count", [2, 4])
def test_whoever_finds_its_rows_taken_reads_on(shell: Shell, count: int) -> None:
    """Each may take a share and no more, so one that gives up early leaves rows that nobody takes."""
    shell.add(160)
    share = {"PM_DISPATCH_LIMIT": str(160 // count), "PM_CONCURRENCY": "2"}
    processes = [shell.start("dispatch", "--json", **_UNPACED, **share) for _ in range(count)]
    answers = [process.communicate(timeout=120) for process in processes]

    assert [process.returncode for process in processes] == [0] * count, answers
    assert [json.loads(out)["scheduled"] for out, _ in answers] == [160 // count] * count
    assert shell.runs_per_row() == [1] * 160
    assert shell.statuses() == {"SCHEDULED": 160}


def test_after_kill_the_next_pass_finishes_without_doubles(shell: Shell) -> None:
    shell.add(60)
    shell.add_repairs(20)
    first = shell.start("dispatch", "--json")
    deadline = time.monotonic() + 30
    while shell.workspace.log.count("run-now") < 10 and time.monotonic() < deadline:
        time.sleep(0.01)
    first.kill()
    first.communicate()

    shell.json("dispatch")

    assert shell.statuses() == {"SCHEDULED": 80}
    assert shell.runs_per_row() == [1] * 60
    repaired = [len(run.attempts) for run in shell.workspace.state.runs(JOB) if "RUN_ID" not in run.parameters]
    assert set(repaired) <= {2}
    assert shell.workspace.log.count("runs/repair", effect=True) == 20


def test_bad_rows_do_not_stop_good_ones(shell: Shell) -> None:
    shell.add(98)
    (unknown,) = shell.add(job_id=UNKNOWN_JOB)
    (malformed,) = shell.add(job_id=None)

    report = shell.json("dispatch", **_UNPACED)

    assert report["scheduled"] == 98
    assert report["new"]["quarantined"] == 2
    failed = dict(shell.sql("SELECT run_id, state_msg FROM mm_run_plc WHERE run_sttus_name = 'FAILED'"))
    assert set(failed) == {unknown, malformed}
    assert str(UNKNOWN_JOB) in failed[unknown]
    assert "null" in failed[malformed]


def test_a_job_that_has_no_answer_does_not_stop_the_others_however_many_its_rows(shell: Shell) -> None:
    """More rows, and older ones, than a workspace that is away would be tried with."""
    shell.workspace.state.add_job("silent", 1002, seconds=None)
    shell.workspace.faults.add("run-now", "status", status=503, match='"job_id": 1002', count=None)
    shell.add(60, job_id=1002)
    shell.add(5)
    assert shell.pm("dispatch", PM_RATE_RUN_NOW="0").returncode == 1
    assert shell.statuses() == {"WAITING": 60, "SCHEDULED": 5}


def test_limit_leaves_the_rest_waiting(shell: Shell) -> None:
    shell.add(5)
    assert shell.json("dispatch", "--limit", "2")["scheduled"] == 2
    assert shell.statuses() == {"SCHEDULED": 2, "WAITING": 3}


def test_sigterm_ends_the_pass_cleanly(shell: Shell) -> None:
    shell.add(100)
    process = shell.start("dispatch", "--json", PM_RATE_RUN_NOW="10")
    deadline = time.monotonic() + 30
    while shell.workspace.log.count("run-now") < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=20)

    assert process.returncode == 0, err
    report = json.loads(out)
    assert 0 < report["scheduled"] < 100
    assert shell.statuses() == {"SCHEDULED": report["scheduled"], "WAITING": 100 - report["scheduled"]}
    assert "stopped on request" in err
    assert shell.json("dispatch", **_UNPACED)["scheduled"] == 100 - report["scheduled"]


def test_table_for_people(shell: Shell) -> None:
    shell.add(1)
    done = shell.pm("dispatch")
    assert done.returncode == 0
    assert "1 read, 1 scheduled" in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) <= 100


def test_a_dispatch_imports_no_more_of_the_libraries_than_it_uses(shell: Shell) -> None:
    shell.add(1)
    heavy = ("aiohttp", "alembic", "azure", "dagster", "numpy", "pandas", "pyspark", "sqlalchemy")
    services = ("catalog", "dashboards", "ml", "settings", "sql", "workspace")
    code = (
        "import sys; sys.argv = ['pm', 'dispatch']\n"
        "from pm_dagster.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: code = end.code\n"
        f"names = [*{heavy}, *('databricks.sdk.service.' + name for name in {services})]\n"
        "print('IMPORTED', [name for name in names if name in sys.modules], code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=shell.environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "IMPORTED [] 0"
    assert shell.statuses() == {"SCHEDULED": 1}
