"""``pm plan``: what a dispatch would do with each row, without doing it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import click

from pm_dagster.cli import connections
from pm_dagster.cli.options import json_option, limit_option
from pm_dagster.cli.output import (
    UNRESOLVED,
    UNTAKEABLE_COLUMNS,
    UNTAKEABLE_TITLE,
    Column,
    console,
    print_json,
    print_table,
    table,
)
from pm_dagster.config.settings import Settings
from pm_dagster.dispatch.planning import OpenEntry, Planned, plan
from pm_dagster.text import counted

_COLUMNS: tuple[Column[Planned], ...] = (
    Column("run id", lambda row: row.run_id, right=True),
    Column("branch", lambda row: row.branch),
    Column("job", lambda row: row.job_id, right=True),
    Column("would", lambda row: row.would),
    Column("why", lambda row: row.why, folds=True),
)
_SHOWN = 20


@click.command("plan")
@limit_option
@json_option
def command(limit: int | None, *, as_json: bool) -> None:
    """Show what a dispatch would do with each row, and why. It only reads.

    A dispatch also tries whether the control table takes the new status of a row, and puts off a row that it does not
    take. The plan does not try that, because it would lock the row and fire the owner's triggers. `pm doctor` does.
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
    out = console()
    if unresolved:
        out.print(f"{counted(unresolved, 'row')} {UNRESOLVED}.")
    if planned:
        out.print(table(_COLUMNS, planned))
    else:
        out.print(f"No {'other ' if unresolved else ''}row can be dispatched now.")
    if stuck:
        print_table(out, UNTAKEABLE_COLUMNS, stuck, UNTAKEABLE_TITLE, backlog.untakeable)


def _known(settings: Settings, run_ids: Sequence[int]) -> Mapping[int, OpenEntry]:
    from pm_dagster.ledger import reads as history  # noqa: PLC0415

    with connections.reader(settings) as connection:
        entries = history.entries(connection, settings, run_ids)
    return {
        entry["run_id"]: OpenEntry(entry["generation"], entry["attempts"], entry["ambiguous"])
        for entry in entries
        if entry["open"]
    }
