"""The demo: rows of every kind, one Dagster run, and what became of each row."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from pm_dagster.errors import ProcessManagerError
from pm_dagster.ledger import reads as history
from pm_dagster.ledger.connection import connect
from pm_dagster.orchestration.names import JOB
from pm_dagster.sandbox.place import Open
from pm_dagster.sandbox.seed import Seeded, seed

_TIMEOUT_SECONDS = 300


@dataclass(frozen=True)
class Told:
    """One row of the demo: what it was, what it is now, and why."""

    run_id: int
    case: str
    before: str
    after: str
    outcome: str
    reason: str


def seed_all(sandbox: Open) -> list[Seeded]:
    """Put waiting jobs of every kind into the sandbox."""
    with closing(connect(sandbox.settings)) as connection:
        return seed(connection, sandbox.workspace.state)


def run_dagster_job(sandbox: Open, log: Path) -> float:
    """Run the Dagster job once, as a process of its own; returns its seconds."""
    command = [sys.executable, "-m", "dagster", "job", "execute"]
    command += ["-m", "pm_dagster.definitions", "-j", JOB]
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with log.open("wb") as output:
        done = subprocess.run(  # noqa: S603 our own command
            command,
            env=dict(sandbox.environment),
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    if done.returncode != 0:
        raise ProcessManagerError(f"the Dagster job failed; its output is in {log}")
    return time.monotonic() - began


def tell(sandbox: Open, seeded: Sequence[Seeded]) -> list[Told]:
    """What the dispatch made of the rows."""
    ids = [row.run_id for row in seeded]
    with closing(connect(sandbox.settings)) as connection:
        latest = {row["run_id"]: row for row in history.entries(connection, sandbox.settings, ids)}
        now = {run_id: history.control_row(connection, sandbox.settings, run_id) for run_id in ids}
    return [_told(row, latest.get(row.run_id, {}), now[row.run_id] or {}) for row in seeded]


def _told(row: Seeded, entry: dict[str, object], now: dict[str, object]) -> Told:
    before = "WAITING" if row.earlier_run is None else f"WAITING, run {row.earlier_run}"
    return Told(
        row.run_id,
        row.case,
        before,
        after=str(now.get("run_sttus_name", "gone")),
        outcome=str(entry.get("outcome") or "untouched"),
        reason=str(entry.get("reason") or ""),
    )
