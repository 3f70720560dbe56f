"""`pm sandbox`: the demo tells every case, twice as well, and reset leaves nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from pm_dagster.sandbox.seed import CASES

_EXPECTED = {
    "run already succeeded": "SUCCESS",
    "unknown job": "FAILED",
    "malformed: no job id": "FAILED",
    "malformed: job id 0": "FAILED",
}


def _sandbox(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pm_dagster.cli", "sandbox", *arguments, "--dir", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)


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
        assert _with_home(folder)
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
