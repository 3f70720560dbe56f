"""`pm redrive` for a class of rows: by reason, job and time, with a dry run; what its owner moved on stays."""

from __future__ import annotations

import signal
import threading
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import psycopg2
import pytest

from pm_dagster.config.settings import Settings
from pm_dagster.ledger import redrive
from pm_dagster.ledger.connection import transaction
from pm_dagster_tests.cli.shell import UNKNOWN_JOB, Shell
from pm_dagster_tests.ledger.postgres_control_table import eventually

_REFUSED = """
WITH row AS (
    INSERT INTO mm_run_plc (cntrt_id, run_sttus_name, wkf_job_id, file_name, rgstr_file_time)
    SELECT 7, 'FAILED', %s, 'file.csv', now() FROM generate_series(1, %s) RETURNING run_id, wkf_job_id)
INSERT INTO process_manager.entry (control_table, run_id, generation, branch, state, open, job_id, reason, closed_at)
SELECT 'public.mm_run_plc', run_id, 1, 'new', 'QUARANTINED', false, wkf_job_id, %s, %s FROM row RETURNING run_id
"""
_THEN = datetime(2026, 3, 28, 12, tzinfo=UTC)


def _add(shell: Shell, count: int = 1, job: int = 7, reason: str = "Job 7 is gone", at: datetime = _THEN) -> list[int]:
    return [row for (row,) in shell.sql(_REFUSED, (job, count, reason, at))]


def _waiting(shell: Shell) -> list[int]:
    found = shell.sql("SELECT run_id FROM mm_run_plc WHERE run_sttus_name = 'WAITING' ORDER BY 1")
    return [row for (row,) in found]


def test_what_was_really_refused_goes_back_as_a_class_and_is_told(shell: Shell) -> None:
    rows = shell.add(3, job_id=UNKNOWN_JOB)
    shell.add(2)
    shell.json("dispatch")
    dry = shell.json("redrive", "--job", str(UNKNOWN_JOB), "--reason", "DOES NOT EXIST", "--dry-run")
    assert (dry["count"], [row["run_id"] for row in dry["rows"]]) == (3, rows)
    assert {(row["job_id"], "does not exist" in row["reason"]) for row in dry["rows"]} == {(UNKNOWN_JOB, True)}
    assert shell.statuses() == {"FAILED": 3, "SCHEDULED": 2}

    assert shell.json("redrive", "--job", str(UNKNOWN_JOB)) == {"redriven": rows, "left_alone": {}}
    assert shell.json("redrive", "--job", str(UNKNOWN_JOB)) == {"redriven": [], "left_alone": {}}
    assert shell.statuses() == {"WAITING": 3, "SCHEDULED": 2}
    events = shell.json("explain", str(rows[0]))["generations"][0]["events"]
    assert [event["kind"] for event in events][-1] == "redriven"
    detail = events[-1]["detail"]
    assert detail.startswith("put back to WAITING by pm redrive on ")
    assert detail.endswith(f" as postgres; asked for: job {UNKNOWN_JOB}")
    shell.workspace.state.add_job("late", job_id=UNKNOWN_JOB)
    assert shell.json("dispatch")["scheduled"] == 3
    assert shell.runs_per_row() == [1] * 5


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--reason", "throttled"], {"a", "b"}),
        (["--reason", "100% _sure_"], {"c"}),
        (["--reason", "100%"], {"c"}),
        (["--reason", "'; DROP TABLE mm_run_plc; --"], {"d"}),
        (["--reason", "%s {x} \\"], {"d"}),
        (["--reason", "ÜBERLAUF"], {"e"}),
        (["--job", "8"], {"b", "e"}),
        (["--job", "8", "--reason", "throttled"], {"b"}),
        (["--since", "2026-03-28T12:00:01+00:00"], {"c", "d"}),
        (["--since", "2026-03-28T12:00Z", "--before", "2026-03-29"], {"a", "b", "c", "e"}),
        (["--before", "2026-03-28T12:00Z"], set()),
        (["--before", "2026-03-28T13:30+01:00", "--job", "7"], {"a"}),
        (["--reason", "nobody ever said this"], set()),
    ],
)
def test_every_filter_holds_and_nothing_else(shell: Shell, arguments: list[str], expected: set[str]) -> None:
    # Upper and lower case beyond ASCII are those of the database's locale, which has none here.
    found = "überlauf" if expected != {"e"} else "ÜBERLAUF"
    rows = {
        "a": _add(shell, reason="HTTP 429: Throttled for job 7"),
        "b": _add(shell, job=8, reason="throttled"),
        "c": _add(shell, reason="100% _sure_", at=datetime(2026, 3, 28, 13, tzinfo=UTC)),
        "d": _add(shell, reason="'; DROP TABLE mm_run_plc; -- %s {x} \\", at=datetime(2026, 3, 30, tzinfo=UTC)),
        "e": _add(shell, job=8, reason=found),
    }
    wanted = sorted(row for name in expected for row in rows[name])
    dry = shell.json("redrive", *arguments, "--dry-run")
    assert sorted(row["run_id"] for row in dry["rows"]) == wanted
    assert _waiting(shell) == []
    assert sorted(shell.json("redrive", *arguments)["redriven"]) == wanted
    assert _waiting(shell) == wanted


def test_only_what_still_says_failed_and_was_refused_last(shell: Shell) -> None:
    moved, own, gone, waiting = _add(shell, 4)
    shell.sql("UPDATE mm_run_plc SET run_sttus_name = 'DONE' WHERE run_id = %s", (moved,))
    shell.sql("DELETE FROM mm_run_plc WHERE run_id = %s", (gone,))
    shell.sql("UPDATE mm_run_plc SET run_sttus_name = 'WAITING' WHERE run_id = %s", (waiting,))
    shell.sql(
        "INSERT INTO process_manager.entry (control_table, run_id, generation, branch, state, open, job_id, reason)"
        " VALUES ('public.mm_run_plc', %s, 2, 'new', 'SCHEDULED', false, 7, 'Job 7 is gone')",
        (own,),
    )
    other = _add(shell)
    shell.sql("UPDATE process_manager.entry SET control_table = 'public.other' WHERE run_id = %s", (other[0],))
    for more in (["--dry-run"], []):
        assert shell.json("redrive", "--job", "7", *more)["redriven"] == []
    assert shell.statuses() == {"DONE": 1, "FAILED": 2, "WAITING": 1}


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--dry-run"],
        ["--reason", ""],
        ["--reason", "  "],
        ["1", "--job", "7"],
        ["--since", "yesterday"],
        ["--since", "2026-13-01"],
        ["--since", "2026-03-29", "--before", "2026-03-28"],
        ["--job", "x"],
        ["--job", "9" * 30],
    ],
    ids=" ".join,
)
def test_a_class_without_a_filter_and_other_wrong_usage(shell: Shell, arguments: list[str]) -> None:
    _add(shell)
    done = shell.pm("redrive", *arguments)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert _waiting(shell) == []


def test_a_dry_run_of_named_rows(shell: Shell) -> None:
    first, second = _add(shell, 2)
    shell.sql("UPDATE mm_run_plc SET run_sttus_name = 'DONE' WHERE run_id = %s", (second,))
    assert [row["run_id"] for row in shell.json("redrive", str(first), str(second), "--dry-run")["rows"]] == [first]
    assert shell.pm("redrive", "--dry-run", "4711").returncode == 1
    assert _waiting(shell) == []


def test_a_time_without_a_zone_is_in_the_zone_of_the_times_that_are_shown(shell: Shell) -> None:
    (row,) = _add(shell, at=datetime(2026, 7, 1, 22, 30, tzinfo=UTC))
    berlin = {"PGTZ": "Europe/Berlin"}
    assert "2026-07-02 00:30:00" in shell.pm("redrive", "--job", "7", "--dry-run", **berlin).stdout
    assert shell.json("redrive", "--since", "2026-07-02", "--dry-run")["count"] == 0
    assert shell.json("redrive", "--since", "2026-07-02", **berlin)["redriven"] == [row]


def test_more_than_one_batch_in_text(shell: Shell) -> None:
    count = 2 * redrive.BATCH + 3
    rows = _add(shell, count)
    shown = shell.pm("redrive", "--job", "7", "--dry-run").stdout
    assert f"{count} rows would go back to WAITING; nothing was written." in shown
    assert f"({count - 60} more are not shown)" in shown
    assert f"{count} rows are WAITING again;" in shell.pm("redrive", "--job", "7").stdout
    assert _waiting(shell) == rows
    assert shell.sql("SELECT count(*), count(DISTINCT entry_id) FROM process_manager.event") == [(count, count)]


def test_two_at_once_put_each_row_back_once(shell: Shell) -> None:
    count = 2 * redrive.BATCH
    rows = _add(shell, count)
    both = [shell.start("redrive", "--job", "7", "--json") for _ in range(2)]
    for process in both:
        _, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (0, "")
    assert _waiting(shell) == rows
    assert shell.sql("SELECT count(*), count(DISTINCT entry_id) FROM process_manager.event") == [(count, count)]


def test_one_that_is_killed_leaves_whole_batches_and_the_next_takes_the_rest(shell: Shell) -> None:
    rows = _add(shell, 3 * redrive.BATCH)
    # The owner's own trigger makes the second batch slow enough to be killed in the middle of it.
    shell.sql(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN"
        " IF NEW.run_id = %s THEN PERFORM pg_sleep(600); END IF; RETURN NEW; END$$",
        (rows[redrive.BATCH + 500],),
    )
    shell.sql("CREATE TRIGGER slow BEFORE UPDATE ON mm_run_plc FOR EACH ROW EXECUTE FUNCTION slow()")
    process = shell.start("redrive", "--job", "7")
    asleep = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
    eventually(lambda: bool(shell.sql(asleep)), "the second batch is under way")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert _waiting(shell) == rows[: redrive.BATCH]
    for (pid,) in shell.sql(asleep):
        shell.sql("SELECT pg_terminate_backend(%s)", (pid,))
    shell.sql("DROP TRIGGER slow ON mm_run_plc")
    assert shell.json("redrive", "--job", "7")["redriven"] == rows[redrive.BATCH :]
    assert shell.sql("SELECT count(*), count(DISTINCT entry_id) FROM process_manager.event") == [(len(rows), len(rows))]


def test_a_row_that_its_owner_holds_locked_stops_no_other(shell: Shell) -> None:
    held, free = _add(shell, 2)
    with closing(psycopg2.connect(shell.database_url)) as owner, owner.cursor() as cursor:
        cursor.execute("SELECT FROM mm_run_plc WHERE run_id = %s FOR UPDATE", (held,))
        found = shell.json("redrive", "--job", "7")
    assert found["redriven"] == [free]
    assert "another session locks it" in found["left_alone"][str(held)]
    assert shell.json("redrive", "--job", "7")["redriven"] == [held]


def test_a_row_that_ran_and_failed_by_itself_while_a_lock_was_awaited_stays_failed(shell: Shell) -> None:
    """Another puts it back, it is dispatched, and its own job fails, all while we wait for the row before it."""
    first, second = _add(shell, 2)
    settings = Settings(postgres_url=shell.database_url)
    done: list[Any] = []

    def ours() -> None:
        with transaction(settings, read_only=False) as connection:
            done.append(redrive.redrive(connection, settings, [first, second], "us"))

    with closing(psycopg2.connect(shell.database_url)) as owner, owner.cursor() as cursor:
        cursor.execute("SELECT FROM mm_run_plc WHERE run_id = %s FOR UPDATE", (first,))
        thread = threading.Thread(target=ours)
        thread.start()
        eventually(
            lambda: bool(shell.sql("SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock'")),
            "we wait for the lock",
        )
        shell.sql(
            "INSERT INTO process_manager.entry (control_table, run_id, generation, branch, state, open, job_id)"
            " VALUES ('public.mm_run_plc', %s, 2, 'new', 'SCHEDULED', false, 7)",
            (second,),
        )
        shell.sql("UPDATE mm_run_plc SET file_name = 'it ran' WHERE run_id = %s", (second,))
        owner.rollback()
        thread.join()
    assert done == [[first]]
    assert shell.statuses() == {"WAITING": 1, "FAILED": 1}
