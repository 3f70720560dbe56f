"""``pm plan``: what a dispatch would do, without doing it.

Put here: reading what the decision needs and naming it. Keep out: the decision (``core.decisions``).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import click

from pm_dagster.cli import connections
from pm_dagster.cli.numbers import LIMIT
from pm_dagster.cli.output import Column, console, json_option, print_json, table
from pm_dagster.core import decisions, steps
from pm_dagster.core.decisions import Policy
from pm_dagster.core.dispatch import policy_of
from pm_dagster.core.errors import Refused, Throttled
from pm_dagster.core.governor import Governor
from pm_dagster.core.ledger_entry import Entry, EntryState
from pm_dagster.core.ports import Call, DatabricksRuns
from pm_dagster.core.run_state import RunSnapshot
from pm_dagster.core.settings import Settings
from pm_dagster.core.steps import Decision
from pm_dagster.core.waiting_job import RawRow, RefusedRow, WaitingJob, sort_rows

_COLUMNS = (
    Column("run id", right=True),
    Column("branch"),
    Column("job", right=True),
    Column("would"),
    Column("why", folds=True),
)
_WORDS: dict[type, str] = {
    steps.StartRun: "start",
    steps.RepairRun: "repair",
    steps.FindRun: "search",
    steps.Adopt: "adopt",
    steps.Defer: "defer",
    steps.Quarantine: "refuse",
    steps.Withdraw: "withdraw",
}
_LOOK_UP_TRIES = 3
#: Who types `pm plan` sits and waits; a longer Retry-After is for a dispatch.
_LONGEST_PAUSE = 5.0


@dataclass(frozen=True)
class Planned:
    """One row, what a dispatch would do with it now, and why."""

    run_id: int | None
    branch: str
    job_id: int | None
    would: str
    why: str


@click.command("plan")
@click.option("--limit", type=LIMIT, help="Look at most at this many rows, oldest first.")
@json_option
def command(limit: int | None, *, as_json: bool) -> None:
    """Show what a dispatch would do with each row, and why. Reads only; writes nothing anywhere."""
    settings = connections.settings()
    rows, ledger, unresolved = _read(settings, limit or settings.dispatch_limit)
    jobs, refused = sort_rows(rows)
    runs = connections.workspace_runs(settings) if any(job.previous_run_id for job in jobs) else None
    planned = [_refused(row) for row in refused] + _plan(jobs, ledger, runs, settings)
    if as_json:
        print_json({"unresolved": unresolved, "rows": [asdict(item) for item in planned]})
        return
    if unresolved:
        click.echo(f"First, {unresolved} rows that a dead dispatcher left half-done are resolved.")
    cells = [(p.run_id, p.branch, p.job_id, p.would, p.why) for p in planned]
    console().print(table(_COLUMNS, cells) if cells else "Nothing waits.")


def _read(settings: Settings, limit: int) -> tuple[list[RawRow], dict[int, dict[str, Any]], int]:
    from pm_dagster.postgres import history  # noqa: PLC0415

    with connections.control_plane(settings) as control:
        rows = control.waiting(limit)
        unresolved = control.backlog().extra.get("unresolved", 0)
    ids = [row.run_id for row in rows if isinstance(row.run_id, int)]
    with connections.reader(settings) as connection:
        entries = history.entries(connection, settings, ids)
    return rows, {entry["run_id"]: entry for entry in entries if entry["open"]}, unresolved


def _refused(row: RefusedRow) -> Planned:
    return Planned(row.run_id, row.branch.value, None, "refuse", row.reason)


def _plan(
    jobs: list[WaitingJob],
    ledger: dict[int, dict[str, Any]],
    runs: DatabricksRuns | None,
    settings: Settings,
) -> list[Planned]:
    entries = [_entry(job, ledger.get(job.run_id, {})) for job in jobs]
    governor = Governor({Call.GET_RUN: settings.rate_get_run}, time.monotonic)
    policy = policy_of(settings)
    with ThreadPoolExecutor(settings.concurrency) as pool:
        asked = {}
        for entry in entries:
            if runs is not None and isinstance(decisions.first_step(entry), steps.LookUp):
                time.sleep(governor.delay(Call.GET_RUN))
                governor.take(Call.GET_RUN)
                asked[entry.entry_id] = pool.submit(_look_up, runs, entry, policy)
        return [
            _planned(entry, asked[entry.entry_id].result() if entry.entry_id in asked else None) for entry in entries
        ]


def _entry(job: WaitingJob, known: dict[str, Any]) -> Entry:
    """The entry that a claim would make; a claim takes all but the row's past attempts from the view."""
    return Entry(
        entry_id=job.run_id,
        run_id=job.run_id,
        generation=known.get("generation", 1),
        branch=job.branch,
        state=EntryState.CLAIMED,
        job_id=job.job_id,
        previous_run_id=job.previous_run_id,
        parameters=job.parameters,
        idempotency_token="",
        attempts=known.get("attempts", 0),
        ambiguous=known.get("ambiguous", False),
    )


def _look_up(runs: DatabricksRuns, entry: Entry, policy: Policy) -> Decision:
    if entry.previous_run_id is None:
        return steps.StartRun()
    try:
        return decisions.after_look_up(entry, _patiently(runs.look_up, entry.previous_run_id), policy)
    except Refused as error:
        return decisions.after_failure(entry, Call.GET_RUN, error, 1, 0, policy)


def _patiently(look_up: Callable[[int], RunSnapshot], run_id: int) -> RunSnapshot:
    for _ in range(_LOOK_UP_TRIES - 1):
        try:
            return look_up(run_id)
        except Throttled as error:
            time.sleep(min(error.retry_after or 1.0, _LONGEST_PAUSE))
    return look_up(run_id)


def _planned(entry: Entry, decision: Decision | None) -> Planned:
    decision = decision or decisions.first_step(entry)
    if isinstance(decision, steps.Stop):
        raise decision.error
    would = _WORDS.get(type(decision), "look up")
    return Planned(entry.run_id, entry.branch.value, entry.job_id, would, _why(entry, decision))


def _why(entry: Entry, decision: Decision) -> str:
    if isinstance(decision, steps.RepairRun):
        if decision.latest_repair_id is None:
            return f"run {entry.previous_run_id} can be repaired; it was never repaired before"
        return f"run {entry.previous_run_id} can be repaired after repair {decision.latest_repair_id}"
    reason: str = getattr(decision, "reason", "")
    return reason or "never had a Databricks run"
