"""`pm sandbox`: the demo tells every case, twice as well, and reset leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from pm_dagster.ledger.connection import connect
from pm_dagster.sandbox.place import Place
from pm_dagster.sandbox.seed import CASES
from pm_dagster_tests.ledger.postgres_control_table import eventually

_EXPECTED = {
    "run already succeeded": "SUCCESS",
    "unknown job": "FAILED",
    "malformed: no job id": "FAILED",
    "malformed: job id 0": "FAILED",
}


def _sandbox(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pm_dagster.cli", "sandbox", *arguments, "--dir", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)


@pytest.mark.slow
def test_demo_twice_then_reset(tmp_path: Path) -> None:
    folder = tmp_path / "sandbox"
    for _ in range(2):
        done = _sandbox("demo", "--json", folder=folder)
        assert done.returncode == 0, done.stderr
        rows = json.loads(done.stdout)["rows"]
        assert Counter(row["case"] for row in rows) == {case.name: case.rows for case in CASES}
        for row in rows:
            assert row["after"] == _EXPECTED.get(row["case"], "SCHEDULED"), row
            assert row["reason"], row

    assert _sandbox("reset", folder=folder).returncode == 0
    assert not folder.exists()
    assert _sandbox("reset", folder=folder).returncode == 0


@pytest.mark.slow
def test_up_ends_with_all_its_children(tmp_path: Path) -> None:
    folder = tmp_path / "sandbox"
    command = [sys.executable, "-m", "pm_dagster.cli", "sandbox", "up", "--dir", str(folder), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = ""
        while "Ctrl-C" not in (line := process.stdout.readline()):
            assert line, "it ended"
            said += line
        assert f'eval "$(pm sandbox env --dir {folder})"' in said
        assert "export DATABRICKS_HOST=http://127.0.0.1:" in _sandbox("env", folder=folder).stdout
        assert len(_code_servers(folder)) == 1
        busy = _sandbox("demo", folder=folder)
        assert busy.returncode == 1
        assert "in use" in busy.stderr

        assert _sandbox("reset", folder=folder).returncode == 0
        assert process.wait(timeout=30) == 0
    deadline = time.monotonic() + 10
    while _with_home(folder) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert _with_home(folder) == []
    assert not folder.exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_up_leaves_none_of_its_children_however_it_ends(tmp_path: Path, number: signal.Signals) -> None:
    folder = tmp_path / "sandbox"
    command = [sys.executable, "-m", "pm_dagster.cli", "sandbox", "up", "--dir", str(folder), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while "Ctrl-C" not in (line := process.stdout.readline()):
            assert line, "it ended"
        assert len(_with_home(folder)) > 2
        process.send_signal(number)
        process.wait(timeout=30)
    eventually(lambda: _with_home(folder) == [], "all of Dagster's processes have ended")
    assert _sandbox("reset", folder=folder).returncode == 0
    assert not folder.exists()


def test_libpqs_variables_of_the_caller_lead_nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PGHOSTADDR": "127.0.0.9", "PGOPTIONS": "-c search_path=nowhere", "PGSERVICE": "none"}.items():
        monkeypatch.setenv(name, value)
    with Place(tmp_path / "sandbox").opened() as sandbox, closing(connect(sandbox.settings)) as connection:
        assert connection.info.host != "127.0.0.9"
        monkeypatch.setenv("PGHOSTADDR", "127.0.0.9")
        assert "unset PGHOSTADDR\n" in _sandbox("env", folder=tmp_path / "sandbox").stdout


def test_a_folder_that_the_shell_would_read_is_refused(tmp_path: Path) -> None:
    done = _sandbox("demo", folder=tmp_path / "a$(touch b)")
    assert done.returncode == 1
    assert "choose another" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def _code_servers(folder: Path) -> list[bytes]:
    commands = [Path("/proc", number, "cmdline").read_bytes().split(b"\0") for number in _with_home(folder)]
    return [b" ".join(command) for command in commands if command[1:5] == [b"-m", b"dagster", b"api", b"grpc"]]


def _with_home(folder: Path) -> list[str]:
    """The processes that run in the environment of this sandbox."""
    wanted = f"DAGSTER_HOME={folder.resolve() / 'dagster'}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(entry.name)
            except OSError:
                continue
    return found
