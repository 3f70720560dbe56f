"""What `pm` says of itself, of a wrong call, and of rows that it does not dispatch."""

from __future__ import annotations

import io
import re
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pm_dagster.cli import run
from pm_dagster.cli.output import duration, moment
from pm_dagster.config.settings import Settings
from pm_dagster.dispatch.waiting_job import sort_rows
from pm_dagster.ledger.control_plane import PostgresControlPlane

if TYPE_CHECKING:
    from pm_dagster_tests.cli.shell import Shell

_EXIT_CODES = Path(__file__).parents[2] / "docs" / "reference" / "exit-codes.md"


def _pm(*arguments: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    return run(arguments, {"COLUMNS": "100"}, out, err), out.getvalue(), err.getvalue()


@pytest.mark.parametrize(("typed", "meant"), [("statsu", "status"), ("Doctor", "doctor"), ("redriv", "redrive")])
def test_a_misspelled_command_is_told_the_one_that_is_meant(typed: str, meant: str) -> None:
    code, out, err = _pm(typed)
    assert (code, out) == (2, "")
    assert f"No such command '{typed}'. Did you mean '{meant}'?" in err


def test_a_command_that_resembles_none_is_told_all() -> None:
    code, _, err = _pm("xyzzy")
    assert code == 2
    assert "init, doctor, plan, dispatch, status, explain, redrive, grants, sandbox" in err


def test_the_version() -> None:
    code, out, _ = _pm("--version")
    assert code == 0
    assert re.fullmatch(r"pm \d+\.\d+\.\d+\S*\n", out)


def test_help_and_the_page_of_exit_codes_say_the_same() -> None:
    page = re.findall(r"^\| (\d+) \| (.*) \|$", _EXIT_CODES.read_text(encoding="utf-8"), re.MULTILINE)
    shown = re.findall(r"^    (\d+) +(.*)$", _pm("--help")[1], re.MULTILINE)
    assert len(page) > 1
    assert shown == page


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["dispatch", "--limit", "0"], "'--limit': '0' is not a whole number from 1 to 1000000."),
        (["plan", "--limit", "many"], "'--limit': 'many' is not a whole number from 1 to 1000000."),
        (["sandbox", "up", "--port", "70000"], "'--port': '70000' is not a whole number from 0 to 65535."),
        (["redrive", "--since", "yesterday"], "'--since': 'yesterday' is not a time; write it as 2026-03-28, "),
        (["redrive", "--since", "2026-03-28", "--before", "2026-03-28"], "--since must be earlier than --before"),
        (["redrive"], "give either RUN_ID... or some of --reason, --job, --since and --before"),
        (["init", "--moved", "--copy"], "give either --moved"),
    ],
)
def test_a_wrong_value_is_told_what_would_be_one(arguments: list[str], says: str) -> None:
    code, out, err = _pm(*arguments)
    assert (code, out) == (2, "")
    assert says in err


def test_values_of_options_have_plain_names() -> None:
    for command in ("plan", "dispatch", "redrive"):
        assert "INTEGER RANGE" not in _pm(command, "--help")[1]
    assert "--limit ROWS" in _pm("plan", "--help")[1]
    assert "--job JOB_ID" in _pm("redrive", "--help")[1]


def test_times_carry_their_zone_and_can_be_typed_again() -> None:
    summer = timezone(timedelta(hours=2))
    times = [datetime(2026, 7, 1, 3, 4, 5, tzinfo=zone) for zone in (UTC, summer, None)]
    assert [moment(time) for time in times] == [
        "2026-07-01 03:04:05Z",
        "2026-07-01 03:04:05+0200",
        "2026-07-01 03:04:05",
    ]
    assert [datetime.fromisoformat(moment(time)) for time in times] == times
    assert moment(None) == ""


def test_durations() -> None:
    seconds = (None, 0.0, 0.054, 9.99, 12.3, 90.0, 7200.0, 172_800.0)
    assert [duration(each) for each in seconds] == [
        "",
        "0.00 s",
        "0.05 s",
        "9.99 s",
        "12 s",
        "1.5 min",
        "2.0 h",
        "2.0 d",
    ]


def test_a_dispatch_that_finds_only_rows_of_another_says_so(shell: Shell) -> None:
    """It is not that nothing waits."""
    shell.add(3)
    other = PostgresControlPlane(Settings(postgres_url=shell.database_url), "another dispatch")
    try:
        other.claim(sort_rows(other.waiting(2))[0])
        shell.sql("UPDATE mm_run_plc SET run_sttus_name = 'HELD' WHERE run_id = 3")
        said = shell.pm("dispatch").stdout
    finally:
        other.end()
    assert said.splitlines() == [
        "Nothing was dispatched.",
        "0 rows of public.mm_run_wait_vw can be dispatched now.",
        "  2 in a dispatch that is running",
    ]
    shell.json("dispatch")
    assert shell.pm("dispatch").stdout == "Nothing waits in public.mm_run_wait_vw.\n"


def test_rows_in_doubt_are_told_by_status_and_plan(shell: Shell) -> None:
    shell.add(1)
    shell.workspace.faults.add("run-now", "status", status=503, when="after", count=1)
    failed = shell.pm("dispatch", PM_CALL_TRIES="1", PM_SETTLE_SECONDS="0")
    assert failed.returncode == 1
    last = failed.stderr.splitlines()[-1]
    assert last.startswith("pm: the workspace answers HTTP 503")
    assert last.endswith("; try again, `pm doctor` shows what is down")
    left = "1 left by a dispatcher that ended; a dispatch first finds out what their calls did"
    assert left in shell.pm("status").stdout
    plan = shell.pm("plan").stdout.splitlines()
    assert plan == [f"1 row {left[2:]}.", "No other row can be dispatched now."]
