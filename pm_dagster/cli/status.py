"""``pm status``: how much waits, and how the ledger stands. Put here: the overview. Keep out: SQL."""

from __future__ import annotations

from typing import Any

import click

from pm_dagster.cli import connections
from pm_dagster.cli.output import Column, age, console, json_option, print_json, table, text
from pm_dagster.config.settings import Settings
from pm_dagster.text import counted, sentence

_STATES = (Column("state"), Column("open"), Column("entries", right=True))
_DISPATCHERS = (
    Column("id", right=True),
    Column("who", folds=True),
    Column("started"),
    Column("ended"),
    Column("as"),
    Column("entries", right=True),
)
_UNTAKEABLE = (Column("run id", right=True), Column("why, and what to do", folds=True))
_SHOWN = 20
_QUARANTINED = (Column("run id", right=True), Column("branch"), Column("since"), Column("reason", folds=True))


@click.command("status")
@json_option
def command(*, as_json: bool) -> None:
    """Show the backlog, the ledger by state, the last dispatchers, and refused rows with reasons."""
    settings = connections.settings()
    found = _read(settings)
    if as_json:
        print_json(found)
    else:
        _print(found, settings)


def _read(settings: Settings) -> dict[str, Any]:
    from pm_dagster.ledger import reads as history  # noqa: PLC0415

    # First, because it looks at the names in the settings, and says which of them leads nowhere.
    with connections.control_plane(settings) as control:
        backlog = control.backlog()
        stuck = control.untakeable(_SHOWN) if backlog.untakeable else []
    with connections.reader(settings) as connection:
        found = {
            "ledger": history.ledger_states(connection, settings),
            "dispatchers": history.last_dispatchers(connection),
            "quarantined": history.quarantined(connection, settings),
        }
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
    return {"backlog": counts, "question": backlog.question, "untakeable": untakeable, **found}


def _print(found: dict[str, Any], settings: Settings) -> None:
    out, backlog = console(), found["backlog"]
    if found["question"]:
        out.print(text(sentence(f"Nothing is dispatched here: {found['question']}"), "bold red"))
    out.print(
        f"{counted(backlog['ready'], 'waiting job')} in {settings.schema}.{settings.wait_view}"
        f" (oldest {age(backlog['oldest_seconds'])}); {backlog['backing_off']} backing off,"
        f" {backlog['in_hand']} in hand, {backlog['quarantined']} refused and still shown."
    )
    if backlog["locked"]:
        out.print(f"{backlog['locked']} more are locked by somebody else; they are taken when the locks are released.")
    if found["untakeable"]:
        stuck = [(row["run_id"], f"{row['reason']}: {row['remedy']}") for row in found["untakeable"]]
        out.print()
        out.print(table(_UNTAKEABLE, stuck, f"{backlog['untakeable']} rows of the view that no dispatch can take"))
    for title, columns, rows in (
        ("Ledger", _STATES, [(r["state"], _yes(r["open"]), r["entries"]) for r in found["ledger"]]),
        ("Last dispatchers", _DISPATCHERS, [_dispatcher(row) for row in found["dispatchers"]]),
        (
            "Refused rows (pm redrive puts them back)",
            _QUARANTINED,
            [(r["run_id"], r["branch"], r["updated_at"], r["reason"]) for r in found["quarantined"]],
        ),
    ):
        out.print()
        out.print(table(columns, rows, title) if rows else f"{title}: none")


def _dispatcher(row: dict[str, Any]) -> tuple[Any, ...]:
    how = row["ended_as"] or ("alive" if row["alive"] else "dead, not yet noticed")
    started, ended = row["started_at"], row["ended_at"]
    return row["dispatcher_id"], row["actor"], started, ended, how, row["entries"]


def _yes(value: object) -> str:
    return "open" if value else "closed"
