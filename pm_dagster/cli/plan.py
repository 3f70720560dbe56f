"""``pm plan``: what a dispatch would do, without doing it.

Put here: what the plan reads, and how it is shown. Keep out: the plan (``core.planning``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import click

from pm_dagster.cli import connections
from pm_dagster.cli.numbers import LIMIT
from pm_dagster.cli.output import Column, console, json_option, print_json, table
from pm_dagster.config.settings import Settings
from pm_dagster.dispatch.planning import OpenEntry, plan

_COLUMNS = (
    Column("run id", right=True),
    Column("branch"),
    Column("job", right=True),
    Column("would"),
    Column("why", folds=True),
)
_UNTAKEABLE = (Column("run id", right=True), Column("why, and what to do", folds=True))
_SHOWN = 20


@click.command("plan")
@click.option("--limit", type=LIMIT, help="Look at most at this many rows, oldest first.")
@json_option
def command(limit: int | None, *, as_json: bool) -> None:
    """Show what a dispatch would do with each row, and why. Reads only; writes nothing anywhere.

    Whether the control table would take the closing of a row is not tried, for that locks the row and fires the
    owner's triggers: a dispatch tries it, and puts off a row that is refused; `pm doctor` tries it too.
    """
    settings = connections.settings()
    with connections.control_plane(settings, looks=True) as control:
        backlog = control.backlog()
        stuck = control.untakeable(_SHOWN) if backlog.untakeable else []
        planned = plan(
            control,
            lambda run_ids: _known(settings, run_ids),
            lambda: connections.workspace_runs(settings),
            settings,
            limit or settings.dispatch_limit,
        )
    unresolved = backlog.extra.get("unresolved", 0)
    if as_json:
        print_json(
            {
                "unresolved": unresolved,
                "rows": [asdict(item) for item in planned],
                "untakeable": [{"run_id": row.run_id, "reason": row.reason, "remedy": row.remedy} for row in stuck],
            }
        )
        return
    if unresolved:
        click.echo(f"First, {unresolved} rows that a dead dispatcher left half-done are resolved.")
    out = console()
    cells = [(p.run_id, p.branch, p.job_id, p.would, p.why) for p in planned]
    out.print(table(_COLUMNS, cells) if cells else "Nothing waits." if not stuck else "Nothing can be taken.")
    if stuck:
        rows = [(row.run_id, f"{row.reason}: {row.remedy}") for row in stuck]
        out.print()
        out.print(table(_UNTAKEABLE, rows, f"{backlog.untakeable} rows of the view that no dispatch can take"))


def _known(settings: Settings, run_ids: Sequence[int]) -> Mapping[int, OpenEntry]:
    from pm_dagster.ledger import reads as history  # noqa: PLC0415

    with connections.reader(settings) as connection:
        entries = history.entries(connection, settings, run_ids)
    return {
        entry["run_id"]: OpenEntry(entry["generation"], entry["attempts"], entry["ambiguous"])
        for entry in entries
        if entry["open"]
    }
