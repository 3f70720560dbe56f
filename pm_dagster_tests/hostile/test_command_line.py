"""`pm` as a process, in surroundings that are not as a terminal should be: one line, no traceback, nothing lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pm_dagster_tests.cli.shell import Shell

PM = [sys.executable, "-m", "pm_dagster.cli"]
NASTY = "\x1b[31m\x1b]8;;http://x\x07[red]x[/nope] :smile: \x9b2J \u202e納品 🚚\r\nSCHEDULED"
_BREAKS = """
import sys
sys.path.insert(0, {root!r})
import pm_dagster.config.settings as settings
def broken(*_):
    raise {error}
settings.settings_from = broken
import pm_dagster.cli.connections as connections
connections.settings_from = broken
from pm_dagster.cli.app import main
sys.argv = ["pm", *{arguments!r}]
main()
"""


def _refused(shell: Shell) -> int:
    """A row that holds hostile text and was refused with more of it."""
    (row,) = shell.add()
    shell.sql("UPDATE mm_run_plc SET file_name = %s", (NASTY,))
    body = json.dumps({"error_code": "INVALID_PARAMETER_VALUE", "message": NASTY})
    shell.workspace.faults.add("run-now", "status", status=400, body=body)
    shell.json("dispatch")
    return row


def _harmless(text: str) -> None:
    assert all(char.isprintable() or char == "\n" for char in text), repr(text)
    assert "Traceback" not in text


def test_no_command_lets_a_text_move_the_terminal(shell: Shell) -> None:
    row = _refused(shell)
    for command in (["status"], ["explain", str(row)], ["plan"], ["doctor"], ["redrive", str(row)], ["dispatch"]):
        done = shell.pm(*command)
        _harmless(done.stdout + done.stderr)
    shown = shell.pm("explain", str(row)).stdout
    assert "\\x1b[31m" in shown
    assert "[red]" in shown
    assert ":smile:" in shown


def test_json_holds_the_same_text_in_escapes(shell: Shell) -> None:
    row = _refused(shell)
    for more in ({}, {"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}):
        done = shell.pm("explain", str(row), "--json", **more)
        _harmless(done.stdout)
        assert json.loads(done.stdout)["control_table"]["file_name"] == NASTY


_SURROUNDINGS: list[dict[str, str]] = [
    {"LANG": "C", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
    {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"COLUMNS": "1"},
    {"COLUMNS": "x", "LINES": "-1", "TERM": "dumb", "HOME": "/nonexistent"},
    {"FORCE_COLOR": "1", "NO_COLOR": "1", "TERM": "", "HOME": ""},
    {"TZ": "No/Where"},
]


def test_surroundings_that_are_no_terminal(shell: Shell) -> None:
    row = _refused(shell)
    for surroundings in _SURROUNDINGS:
        done = shell.pm("explain", str(row), **surroundings)
        assert (done.returncode, done.stderr) == (0, ""), surroundings


def test_a_working_directory_that_is_gone_or_not_ours(shell: Shell, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    for arguments in (["status"], ["dispatch"]):
        code = f"cd {gone} && rmdir {gone} && exec {' '.join(PM)} {' '.join(arguments)}"
        gone.mkdir(exist_ok=True)
        environment = shell.environment(PYTHONPATH=str(Path(__file__).parents[2]))
        done = subprocess.run(["sh", "-c", code], env=environment, capture_output=True, text=True, check=False)  # noqa: S607 any sh
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "redirection", "code"),
    [
        ("dispatch", "<&- >&- 2>&-", 0),
        ("status", ">&-", 0),
        ("status", "2>&-", 0),
        ("explain 4711", "2>&-", 1),
        ("nonsense", ">&- 2>&-", 2),
    ],
)
def test_streams_that_are_closed(shell: Shell, arguments: str, redirection: str, code: int) -> None:
    line = f"exec {' '.join(PM)} {arguments} {redirection}"
    done = subprocess.run(["sh", "-c", line], env=shell.environment(), capture_output=True, text=True, check=False)  # noqa: S607 any sh
    assert (done.returncode, done.stderr) == (code, "")


@pytest.mark.parametrize("arguments", [["status"], ["status", "--json"], ["--help"]])
def test_a_reader_that_hangs_up(shell: Shell, arguments: list[str]) -> None:
    shell.add()
    reading, writing = os.pipe()
    os.close(reading)
    with subprocess.Popen(
        [*PM, *arguments], env=shell.environment(), stdout=writing, stderr=subprocess.PIPE
    ) as process:
        os.close(writing)
        _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (1, b"")


def test_a_disk_that_is_full(shell: Shell) -> None:
    with Path("/dev/full").open("w") as full:
        for arguments in (["status"], ["status", "--json"]):
            done = subprocess.run([*PM, *arguments], env=shell.environment(), stdout=full, stderr=-1, check=False)
            lines = done.stderr.decode().splitlines()
            assert (done.returncode, len(lines)) == (1, 1), lines
            assert "No space left" in lines[0]


_ERRORS = [
    "ZeroDivisionError('in\\nthe \\x1b[31m middle of ' + token)",
    "RecursionError()",
    "MemoryError()",
    "OSError(24, 'Too many open files')",
    "UnicodeDecodeError('utf-8', b'x', 0, 1, 'w')",
]
_COMMANDS = ["status", "dispatch", "doctor", "plan", "init", "explain 1", "redrive 1"]


@pytest.mark.parametrize(("command", "error"), list(zip(_COMMANDS, [*_ERRORS, *_ERRORS[:2]], strict=True)))
def test_an_error_that_nobody_foresaw_is_one_line_without_secrets(tmp_path: Path, command: str, error: str) -> None:
    _unforeseen(tmp_path, command, error)


@pytest.mark.chaos
@pytest.mark.parametrize("command", _COMMANDS)
@pytest.mark.parametrize("error", _ERRORS)
def test_every_error_that_nobody_foresaw_in_every_command(tmp_path: Path, command: str, error: str) -> None:
    _unforeseen(tmp_path, command, error)


def _unforeseen(tmp_path: Path, command: str, error: str) -> None:
    token = "dapi" + "0" * 32
    root = str(Path(__file__).parents[2])
    wanted = error.replace("token", repr(token))
    for debug in (False, True):
        arguments = [*(["--debug"] if debug else []), *command.split()]
        code = _BREAKS.format(root=root, error=wanted, arguments=arguments)
        clean = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "DATABRICKS_TOKEN": token}
        done = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=False)
        lines = done.stderr.splitlines()
        assert done.returncode == 1
        assert lines[-1].startswith("pm: ")
        assert ("Traceback" in done.stderr, len(lines) == 1) == (debug, not debug)
        assert debug or "PM_DEBUG=1" in lines[0]
        assert token not in done.stderr
        _harmless(done.stderr.replace("Traceback", ""))
        if "ZeroDivision" not in error:
            break


@pytest.mark.parametrize(
    "arguments",
    [
        ["dispatch", "--limit", "9" * 30],
        ["dispatch", "--limit", "9" * 5000],
        ["dispatch", "--limit", "-1"],
        ["plan", "--limit", "1e3"],
        ["explain", "9223372036854775808"],
        ["explain", "--", "-9223372036854775809"],
        ["redrive", "1", "9" * 5000],
        ["explain", "NaN"],
        ["sandbox", "up", "--port", "99999"],
        ["\x1b[31m"],
    ],
    ids=lambda arguments: " ".join(arguments)[:30],
)
def test_numbers_beyond_what_can_be_meant_are_wrong_usage(arguments: list[str], tmp_path: Path) -> None:
    done = subprocess.run([*PM, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("run_id", ["9223372036854775807", "-9223372036854775808", "0"])
def test_a_row_of_any_number_can_be_asked_for(shell: Shell, run_id: str) -> None:
    for command in ("explain", "redrive"):
        done = shell.pm(command, "--", run_id)
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
        assert run_id in done.stderr
