"""The cluster's program, with a control plane and a workspace of its own."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pm_dagster.cluster import entry
from pm_dagster.dispatch.report import report_in
from pm_dagster_tests import in_process
from pm_dagster_tests.cli.shell import Shell

ENTRY = Path(__file__).parents[2] / "pm_dagster" / "cluster" / "process_manager.py"
UNPACED = {"PM_RATE_RUN_NOW": "0", "PM_RATE_REPAIR": "0", "PM_RATE_GET_RUN": "0"}

_EVENT = re.compile(r"\S+Z (INFO|WARNING) [a-z]")


@dataclass
class ClusterProgram(Shell):
    """``python`` and ``entry`` say with which interpreter which copy of the file runs."""

    python: str = sys.executable
    entry: Path = ENTRY

    def start(self, *arguments: str, **more: str) -> subprocess.Popen[str]:
        """Start the program as a process of its own."""
        return self.start_in(None, *arguments, **more)

    def start_in(self, folder: Path | None, *arguments: str, **more: str) -> subprocess.Popen[str]:
        """Start it from another working directory."""
        command = [self.python, str(self.entry), *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=self.environment(**more), cwd=folder, stdout=pipe, stderr=pipe, text=True)

    def wait_for(self, process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
        """Wait for the end of a process."""
        with process:
            out, err = process.communicate(timeout=120)
            return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def run(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run the program with --read driver to its end."""
        return self.run_with("--read", "driver", *arguments, **more)

    def run_with(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run the program to its end: in this process, or in one of its own where it is to import other files."""
        environment = self.environment(**more)
        same = environment.get("PYTHONPATH") == os.environ.get("PYTHONPATH")
        if same and (self.python, self.entry) == (sys.executable, ENTRY):
            return in_process.run(_main, ENTRY.name, *arguments, environment=environment)
        return self.wait_for(self.start(*arguments, **more))

    def numbers(self, *arguments: str, **more: str) -> dict[str, Any]:
        """Run the program, which must succeed, and give the numbers of its last line."""
        done = self.run(*arguments, **more)
        assert done.returncode == 0, done.stderr
        return numbers_of(done)


def _main() -> None:
    # A process begins without pytest's handlers: the program then shows the warnings of libraries as well.
    logging.getLogger().handlers[:] = []
    entry.main(sys.argv[1:])


def numbers_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The numbers of a report, which must be the last line of the output."""
    found = report_in(done.stdout.splitlines()[-1])
    assert found is not None, done.stdout
    return found


def failure_line(done: subprocess.CompletedProcess[str]) -> str:
    """The last line of a dispatch that could not run; before it are only events of the log, a line each."""
    *events, last = done.stderr.strip().splitlines()
    assert all(_EVENT.match(line) for line in events), done.stderr
    assert " CRITICAL " in last
    assert (done.returncode, done.stdout) == (1, "")
    return last


def levels_after_the_dispatch(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The levels of what the program logs once its dispatch is over."""
    events = [line.split(" ", 2)[1:] for line in done.stderr.splitlines()]
    over = next(place for place, (_, event) in enumerate(events) if event.startswith("dispatch finished"))
    return [level for level, _ in events[over + 1 :]]
