"""``pm explain``: the whole story of one row. Put here: why it is where it is. Keep out: SQL."""

from __future__ import annotations

from typing import Any

import click
from rich.console import Console

from pm_dagster.cli import connections
from pm_dagster.cli.numbers import RUN_ID
from pm_dagster.cli.output import Column, console, json_option, moment, print_json, table, text
from pm_dagster.config.settings import Settings
from pm_dagster.errors import ProcessManagerError
from pm_dagster.text import clause, sentence

_EVENTS = (
    Column("at"),
    Column("what"),
    Column("call"),
    Column("status", right=True),
    Column("took", right=True),
    Column("detail", folds=True),
)

_HELD = " Somebody else holds the row locked at this moment; a dispatch passes it over until the lock is released."


@click.command("explain")
@click.argument("run_id", type=RUN_ID)
@json_option
def command(run_id: int, *, as_json: bool) -> None:
    """Tell the whole story of the row RUN_ID of the control table: what was intended, sent and answered, and why."""
    settings = connections.settings()
    story = _read(settings, run_id)
    if as_json:
        print_json(story)
    else:
        _print(story, settings)


def _read(settings: Settings, run_id: int) -> dict[str, Any]:
    from pm_dagster.ledger import location as whereabouts  # noqa: PLC0415
    from pm_dagster.ledger import reads as history  # noqa: PLC0415
    from pm_dagster.ledger.layout import read_layout  # noqa: PLC0415
    from pm_dagster.ledger.schema import check_ledger  # noqa: PLC0415

    with connections.reader(settings) as connection:
        check_ledger(connection)
        read_layout(connection, settings)
        row, waits = history.control_row_and_waits(connection, settings, run_id)
        entries = history.entries(connection, settings, [run_id])
        shown = history.in_view(connection, settings, run_id)
        if row is None and not entries and not shown:
            raise ProcessManagerError(
                f"there is no row with {settings.column_run_id} {run_id} in {settings.control_table}, and the ledger"
                " has no entry for it"
            )
        events = history.events(connection, [entry["entry_id"] for entry in entries])
        question = whereabouts.question(connection)
    for entry in entries:
        entry["events"] = [event for event in events if event["entry_id"] == entry["entry_id"]]
    latest = entries[-1] if entries else None
    with connections.control_plane(settings) as control:
        stuck = next(iter(control.untakeable(1, [run_id])), None)
        held = bool(control.held([run_id]))
    if stuck is not None and not _is_cared_for(latest) and not (stuck.settled and row is not None):
        status = row[settings.column_status] if row else "waits"
        reason = sentence(f"{status}: {clause(stuck.reason)}; no dispatch can take it. What to do: {stuck.remedy}")
    else:
        reason = why(row, latest, settings, shown=shown, waits=waits, held=held)
    return {
        "run_id": run_id,
        "why": reason,
        "in_view": shown,
        "control_table": row,
        "generations": entries,
        "question": question,
    }


def _is_cared_for(latest: dict[str, Any] | None) -> bool:
    """Whether a dispatcher has the row in hand, or the ledger has it to come back to, whatever view and table say."""
    if latest is None or not latest["open"]:
        return False
    return latest["dispatcher_alive"] or latest["backing_off"] or latest["state"] not in ("CLAIMED", "DEFERRED")


def why(
    row: dict[str, Any] | None,
    latest: dict[str, Any] | None,
    settings: Settings,
    *,
    shown: bool,
    waits: bool,
    held: bool,
) -> str:
    """One sentence: why the row is where it is.

    ``shown`` by the view; ``waits`` by the table's own comparison; ``held`` by somebody else's lock at this moment.
    """
    if row is None:
        return f"The row is gone from {settings.control_table}; only the ledger remembers it."
    status = row[settings.column_status]
    if not waits:
        return f"{status}: {_closed(latest, status, settings)}"
    if latest is None or not latest["open"]:
        return _untouched(latest, settings, shown=shown) + (_HELD if held else "")
    return f"{status}: {_open(latest)}" + (_HELD if held else "")


def _closed(latest: dict[str, Any] | None, status: str, settings: Settings) -> str:
    if latest is None:
        return "no dispatch has ever touched this row."
    reason = (latest["reason"] or "").strip() or "no reason recorded"
    if latest["state"] == "QUARANTINED" and status == settings.status_failed:
        rule = f" Final because {sentence(latest['rule'])}" if latest["rule"] else ""
        return f"refused in generation {latest['generation']}: {sentence(reason)}{rule} `pm redrive` puts it back."
    return f"generation {latest['generation']} ended as {latest['outcome'] or latest['state']}: {sentence(reason)}"


def _untouched(latest: dict[str, Any] | None, settings: Settings, *, shown: bool) -> str:
    status = settings.status_waiting
    if not shown:
        return (
            f"{status}: the view {settings.schema}.{settings.wait_view} does not show this row, so no dispatch sees"
            " it (the view's own conditions, such as a limit per job, leave it out)."
        )
    if latest is None:
        return f"{status}: not yet claimed; the next dispatch takes it, oldest first."
    return (
        f"{status}: asked for again after generation {latest['generation']} ended as"
        f" {latest['outcome'] or latest['state']}; the next dispatch takes it as a new generation."
    )


def _open(entry: dict[str, Any]) -> str:
    answers = [event["detail"] for event in entry.get("events", []) if event["kind"] == "answer"]
    reason = (entry["reason"] or next(reversed(answers), "")).strip() or "no reason recorded"
    refusals = [event["detail"] for event in entry.get("events", []) if event["kind"] == "not closed"]
    if entry["state"] == "QUARANTINED":
        why = f", which did not take it: {refusals[-1]}" if refusals else ""
        return sentence(f"quarantined: {sentence(reason)} The next dispatch writes it to the control table{why}")
    if entry["state"] == "DEFERRED" and entry["backing_off"]:
        return f"backing off until {moment(entry['not_before'])}: {sentence(reason)}"
    if entry["state"] == "DEFERRED":
        return f"was put off ({clause(reason)}); the time is over and the next dispatch takes it."
    if entry["state"] == "ACCEPTED" and refusals:
        said = sentence(refusals[-1])
        return f"its work was accepted ({clause(reason)}), but {said} The next dispatch tries to write it again."
    who = f"dispatcher {entry['dispatcher_id']} ({entry['actor']})"
    if entry["dispatcher_alive"]:
        return f"held by {who}, which is alive; the entry is {entry['state']}."
    when = f"not before {moment(entry['not_before'])}" if entry["backing_off"] else "at once"
    if entry["state"] == "SENDING":
        return (
            f"a call of {who} may have taken effect, but its answer was lost ({clause(reason)})."
            f" The next dispatch finds out and goes on from there, {when}."
        )
    return f"left {entry['state']} by {who}, which is gone; the next dispatch takes it over, {when}."


def _print(story: dict[str, Any], settings: Settings) -> None:
    out = console()
    out.print(text(f"Row {story['run_id']} of {settings.control_table}", "bold"))
    out.print(story["why"])
    if story["question"]:
        out.print(text(sentence(f"Nothing is dispatched here: {story['question']}"), "bold red"))
    row = story["control_table"] or {}
    facts = [(name, value) for name, value in row.items() if value is not None]
    out.print()
    out.print(table((Column("control table"), Column("value", folds=True)), facts))
    for entry in story["generations"]:
        _print_generation(out, entry)


def _print_generation(out: Console, entry: dict[str, Any]) -> None:
    title = f"Generation {entry['generation']}: {entry['branch']}, {entry['state']}, attempts {entry['attempts']}"
    out.print()
    out.print(text(title, "bold"))
    if entry["accepted_run_id"]:
        repair = f", repair {entry['accepted_repair_id']}" if entry["accepted_repair_id"] else ""
        out.print(f"run {entry['accepted_run_id']}{repair}  {entry['page_url'] or ''}", soft_wrap=True)
    rows = [(e["at"], e["kind"], e["call"], e["status"], _took(e["seconds"]), e["detail"]) for e in entry["events"]]
    out.print(table(_EVENTS, rows))


def _took(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.2f} s"
