"""What cannot be done ends with one line, exit code 1 and no secret; wrong usage with 2."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from pm_dagster_tests.cli.shell import UNKNOWN_JOB, Shell

#: How a line of the log begins, which standard error also carries.
_EVENT = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z (INFO|WARNING) ")


def _one_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if not _EVENT.match(line)]
    assert len(lines) == 1, text
    assert lines[0].startswith("pm: ")
    return lines[0]


def test_without_ledger_says_pm_init(bare_shell: Shell) -> None:
    done = bare_shell.pm("dispatch", "--json")
    assert (done.returncode, done.stdout) == (1, "")
    assert "pm init" in _one_line(done.stderr)


def test_init_twice(bare_shell: Shell) -> None:
    first, second = bare_shell.json("init"), bare_shell.json("init")
    assert first["before"] is None
    assert second == {"before": first["after"], "after": first["after"], "answered": False, "question": ""}


def test_database_down(shell: Shell) -> None:
    done = shell.pm("dispatch", PM_POSTGRES_URL="postgresql://someone:geheim@127.0.0.1:1/db")
    assert done.returncode == 1
    assert "database" in _one_line(done.stderr)
    assert "geheim" not in done.stderr


def test_workspace_down_leaves_rows_waiting(shell: Shell) -> None:
    shell.add(5)
    done = shell.pm("dispatch", "--json", DATABRICKS_HOST="http://127.0.0.1:1")
    assert done.returncode == 1
    assert "cannot connect" in _one_line(done.stderr)
    assert shell.statuses() == {"WAITING": 5}
    assert shell.json("dispatch")["scheduled"] == 5


def test_plain_text_500_shows_no_token(shell: Shell) -> None:
    shell.add(3)
    shell.add_repairs(1)
    echo = f"Internal error for Bearer {shell.workspace.token}"
    shell.workspace.faults.add("*", "text", status=500, body=echo, count=None)
    for command in (["dispatch"], ["plan"], ["doctor"], ["status"], ["explain", "1"], ["dispatch", "--json"]):
        done = shell.pm(*command, PM_CALL_TRIES="2", PM_SETTLE_SECONDS="0")
        assert shell.workspace.token not in done.stdout + done.stderr, command
        assert "Traceback" not in done.stderr
    assert not shell.sql("SELECT 1 FROM process_manager.event WHERE detail LIKE %s", (f"%{shell.workspace.token}%",))
    assert not shell.sql("SELECT 1 FROM mm_run_plc WHERE state_msg LIKE %s", (f"%{shell.workspace.token}%",))


def test_wrong_token(shell: Shell) -> None:
    shell.add(2)
    done = shell.pm("dispatch", DATABRICKS_TOKEN="wrong-token")
    assert done.returncode == 1
    assert "credentials" in _one_line(done.stderr)
    assert "wrong-token" not in done.stderr
    assert shell.statuses() == {"WAITING": 2}


def test_setting_that_cannot_be_used(shell: Shell) -> None:
    done = shell.pm("dispatch", PM_CONCURRENCY="many")
    assert done.returncode == 1
    assert "PM_CONCURRENCY" in _one_line(done.stderr)


@pytest.mark.parametrize("arguments", [["status"], ["plan"], ["dispatch"], ["explain", "1"], ["redrive", "1"]])
def test_a_setting_that_names_what_does_not_exist(shell: Shell, arguments: list[str]) -> None:
    """The line says which, and what there is instead."""
    done = shell.pm(*arguments, PM_RUN_TABLE="nowhere")
    assert done.returncode == 1
    line = _one_line(done.stderr)
    assert "there is no public.nowhere (PM_RUN_TABLE)" in line
    assert "mm_run_plc" in line


@pytest.mark.parametrize("arguments", [["dispatch", "--limit", "0"], ["explain"], ["explain", "x"], ["nonsense"]])
def test_wrong_usage(shell: Shell, arguments: list[str]) -> None:
    assert shell.pm(*arguments).returncode == 2


_PLAIN = {"content-type": "text/plain"}


@pytest.mark.parametrize(
    ("fault", "says", "remedy"),
    [
        (
            {"status": 400, "body": "Invalid Token", "headers": _PLAIN},
            "another workspace or tenant",
            "the credentials:",
        ),
        ({"status": 404, "code": "ENDPOINT_NOT_FOUND", "message": "No API found"}, "DATABRICKS_HOST", "the address,"),
        ({"status": 405, "body": "", "headers": _PLAIN}, "proxy or gateway", "the address,"),
        (
            {"status": 403, "code": "PERMISSION_DENIED", "message": "Source IP address: 1.2.3.4 is blocked by IP ACL"},
            "does not accept calls from this network",
            "the network:",
        ),
    ],
)
def test_what_is_not_about_a_row_is_called_by_its_name(
    shell: Shell, fault: dict[str, Any], says: str, remedy: str
) -> None:
    """By the dispatch, which blames no row, and by the doctor."""
    shell.add(3)
    shell.workspace.faults.add("*", "status", count=None, **fault)
    done = shell.pm("dispatch", PM_CALL_BACKOFF_SECONDS="0.01", PM_SETTLE_SECONDS="0")
    assert done.returncode == 1
    assert says in _one_line(done.stderr)
    assert shell.statuses() == {"WAITING": 3}
    doctor = shell.pm("doctor", "--json")
    assert doctor.returncode == 1
    (red,) = [check for check in json.loads(doctor.stdout)["checks"] if not check["ok"]]
    assert red["check"] == "workspace"
    assert red["remedy"].startswith(remedy)


def test_explain_tells_by_which_rule_a_refusal_is_final(shell: Shell) -> None:
    (row,) = shell.add(job_id=UNKNOWN_JOB)
    shell.json("dispatch")
    story = shell.json("explain", str(row))
    assert "Final because the Jobs API itself says so" in story["why"]
    assert "the Jobs API itself says so" in story["generations"][-1]["rule"]


def test_a_workspace_that_refuses_everybody_is_quoted_and_blames_nobody(shell: Shell) -> None:
    rows = [row for number in range(6) for row in shell.add(job_id=UNKNOWN_JOB + number)]
    done = shell.pm("dispatch", PM_CALL_BACKOFF_SECONDS="0.01", PM_SETTLE_SECONDS="0")
    assert done.returncode == 1
    line = _one_line(done.stderr)
    assert "does not exist" in line
    assert "No row is blamed" in line
    assert shell.statuses() == {"WAITING": len(rows)}
    why = shell.json("explain", str(rows[0]))["why"]
    assert "not held against the row" in why
    doctor = json.loads(shell.pm("doctor", "--json").stdout)
    (red,) = [check for check in doctor["checks"] if not check["ok"]]
    assert red["remedy"].startswith("the workspace:")
