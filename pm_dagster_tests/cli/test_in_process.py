"""`pm` inside a process that is somebody else's, and what its log says where."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING

from pm_dagster.cli import run

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pm_dagster_tests.cli.shell import Shell


def _run(shell: Shell, *arguments: str, **more: str) -> tuple[int, str, str]:
    environment: Mapping[str, str] = shell.environment(**more)
    out, err = io.StringIO(), io.StringIO()
    return run(arguments, environment, out, err), out.getvalue(), err.getvalue()


def test_a_call_leaves_the_process_as_it_was(shell: Shell) -> None:
    shell.add()
    logger = logging.getLogger("pm_dagster")

    def process() -> list[object]:
        return [
            dict(os.environ),
            list(sys.argv),
            sys.stdout,
            sys.stderr,
            signal.getsignal(signal.SIGINT),
            signal.getsignal(signal.SIGTERM),
            list(logger.handlers),
            logger.level,
            logger.propagate,
        ]

    before = process()
    code, out, err = _run(shell, "-vv", "dispatch", "--json")
    assert (code, json.loads(out)["scheduled"]) == (0, 1)
    assert "run-now" in err
    assert process() == before


def test_the_environment_is_the_one_that_is_given(shell: Shell) -> None:
    code, out, err = _run(shell, "plan", PM_WAIT_VIEW="no_such_view")
    assert (code, out) == (1, "")
    assert "no_such_view" in err


def test_exit_codes_and_streams_are_those_of_the_process(shell: Shell) -> None:
    assert _run(shell, "--help")[0::2] == (0, "")
    code, out, err = _run(shell, "no-such-command")
    assert (code, out) == (2, "")
    assert "No such command" in err


def test_the_log_shows_as_much_as_is_asked_for(shell: Shell) -> None:
    for arguments, more, lines in (
        (["dispatch"], {}, False),
        (["-vv", "dispatch"], {}, True),
        (["dispatch"], {"PM_LOG_LEVEL": "debug"}, True),
        (["-v", "dispatch"], {"PM_LOG_LEVEL": "debug"}, False),
    ):
        (row,) = shell.add()
        code, _, err = _run(shell, *arguments, **more)
        assert code == 0
        assert (f"run_id={row}" in err) == lines, err
        assert shell.workspace.token not in err


def test_a_log_in_json_leaves_the_output_one_object(shell: Shell) -> None:
    (row,) = shell.add()
    code, out, err = _run(shell, "-vv", "dispatch", "--json", PM_LOG_FORMAT="json")
    events = [json.loads(line) for line in err.splitlines()]
    assert (code, json.loads(out)["scheduled"]) == (0, 1)
    assert row in {event["fields"].get("run_id") for event in events}
    assert {event["level"] for event in events} <= {"debug", "info", "warning"}
    assert shell.workspace.token not in err
    assert shell.database_url not in err


def test_settings_of_the_log_that_cannot_be_used_are_said(shell: Shell) -> None:
    assert _run(shell, "status", PM_LOG_LEVEL="loud") == (
        1,
        "",
        "pm: PM_LOG_LEVEL='loud' cannot be used: expected one of debug, info, warning, error\n",
    )
    code, _, err = _run(shell, "status", PM_DEBUG="maybe")
    assert code == 2
    assert "PM_DEBUG" in err
