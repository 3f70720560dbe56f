"""``pm status``: what waits, how the ledger stands, who dispatched last, and what was refused."""

from __future__ import annotations

from typing import Any

import click

from pm_dagster.cli import connections
from pm_dagster.cli.options import json_option
from pm_dagster.cli.output import (
    UNTAKEABLE_COLUMNS,
    UNTAKEABLE_TITLE,
    Column,
    backlog_lines,
    console,
    print_json,
    print_table,
    text,
)
from pm_dagster.config.settings import Settings
from pm_dagster.dispatch.ports import Backlog
from pm_dagster.dispatch.untakeable import Untakeable
from pm_dagster.text import sentence

#: A row of a query of ``ledger.reads``.
Row = dict[str, Any]

_STATE_COLUMNS: tuple[Column[Row], ...] = (
    Column("state", lambda row: row["state"]),
    Column("open", lambda row: "open" if row["open"] else "closed"),
    Column("entries", lambda row: row["entries"], right=True),
)
_DISPATCHER_COLUMNS: tuple[Column[Row], ...] = (
    Column("id", lambda row: row["dispatcher_id"], right=True),
    Column("who", lambda row: row["actor"], folds=True),
    Column("started", lambda row: row["started_at"]),
    Column("ended", lambda row: row["ended_at"]),
    Column("state", lambda row: row["ended_as"] or ("alive" if row["alive"] else "dead, to be rescued")),
    Column("entries", lambda row: row["entries"], right=True),
)
_REFUSED_COLUMNS: tuple[Column[Row], ...] = (
    Column("run id", lambda row: row["run_id"], right=True),
    Column("branch", lambda row: row["branch"]),
    Column("refused at", lambda row: row["updated_at"]),
    Column("reason", lambda row: row["reason"], folds=True),
)
_SHOWN = 20


@click.command("status")
@json_option
def command(*, as_json: bool) -> None:
    """Show what waits, the ledger by state, the last dispatchers, and the refused rows with reasons. It only reads."""
    from pm_dagster.ledger import reads  # noqa: PLC0415

    settings = connections.settings()
    # First, because it looks at the names in the settings, and says which of them leads nowhere.
    with connections.control_plane(settings) as control:
        backlog = control.backlog()
        stuck = control.untakeable(_SHOWN) if backlog.untakeable else []
    with connections.reader(settings) as connection:
        tables = {
            "ledger": reads.ledger_states(connection, settings),
            "dispatchers": reads.last_dispatchers(connection),
            "quarantined": reads.quarantined(connection, settings, _SHOWN),
        }
    if as_json:
        print_json(_as_json(backlog, stuck) | tables)
    else:
        _print(backlog, stuck, tables, settings)


def _as_json(backlog: Backlog, stuck: list[Untakeable]) -> dict[str, Any]:
    counts = {
        "ready": backlog.ready,
        "oldest_seconds": backlog.oldest_seconds,
        "backing_off": backlog.backing_off,
        "quarantined": backlog.quarantined,
        "in_hand": backlog.in_hand,
        "untakeable": backlog.untakeable,
        "locked": backlog.locked,
        **backlog.extra,
    }
    untakeable = [{"run_id": row.run_id, "reason": row.reason, "remedy": row.remedy} for row in stuck]
    return {"backlog": counts, "question": backlog.question, "untakeable": untakeable}


def _print(backlog: Backlog, stuck: list[Untakeable], tables: dict[str, list[Row]], settings: Settings) -> None:
    out = console()
    if backlog.question:
        out.print(text(sentence(f"Nothing is dispatched: {backlog.question}"), "bold red"))
    for line in backlog_lines(backlog, f"{settings.schema}.{settings.wait_view}"):
        out.print(line)
    if stuck:
        print_table(out, UNTAKEABLE_COLUMNS, stuck, UNTAKEABLE_TITLE, backlog.untakeable)
    print_table(out, _STATE_COLUMNS, tables["ledger"], "Ledger")
    print_table(out, _DISPATCHER_COLUMNS, tables["dispatchers"], "Last dispatchers")
    print_table(out, _REFUSED_COLUMNS, tables["quarantined"], "Last refused rows (`pm redrive` sets them to WAITING)")
