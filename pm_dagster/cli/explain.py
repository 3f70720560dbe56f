"""``pm explain``: why one row is where it is, and every step that led there."""

from __future__ import annotations

from typing import Any

import click
from rich.console import Console

from pm_dagster.cli import connections
from pm_dagster.cli.options import RUN_ID, json_option
from pm_dagster.cli.output import Column, console, duration, moment, print_json, table, text
from pm_dagster.config.settings import Settings
from pm_dagster.errors import ProcessManagerError
from pm_dagster.text import clause, sentence

_EVENT_COLUMNS: tuple[Column[dict[str, Any]], ...] = (
    Column("at", lambda event: event["at"]),
    Column("what", lambda event: event["kind"]),
    Column("call", lambda event: event["call"]),
    Column("status", lambda event: event["status"], right=True),
    Column("took", lambda event: duration(event["seconds"]), right=True),
    Column("detail", lambda event: event["detail"], folds=True),
)
_FACT_COLUMNS: tuple[Column[tuple[str, object]], ...] = (
    Column("control table", lambda fact: fact[0]),
    Column("value", lambda fact: fact[1], folds=True),
)
_HELD = " Another session has it locked at this moment; a dispatch takes it once the lock is released."


@click.command("explain")
@click.argument("run_id", type=RUN_ID)
@json_option
def command(run_id: int, *, as_json: bool) -> None:
    """Show why the row RUN_ID of the control table is where it is, and every step that led there. It only reads."""
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
                f"there is no row with {settings.column_run_id} {run_id} in {settings.control_table} or in the ledger"
            )
        events = history.events(connection, [entry["entry_id"] for entry in entries])
        question = whereabouts.question(connection)
    for entry in entries:
        entry["events"] = [event for event in events if event["entry_id"] == entry["entry_id"]]
    latest = entries[-1] if entries else None
    with connections.control_plane(settings) as control:
        stuck = next(iter(control.untakeable(1, [run_id])), None)
        held = bool(control.held([run_id]))
    if stuck is not None and not _is_unfinished(latest) and not (stuck.settled and row is not None):
        status = row[settings.column_status] if row else "waits"
        reason = sentence(f"{status}: {clause(stuck.reason)}; no dispatch can take it. To do: {stuck.remedy}")
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


def _is_unfinished(latest: dict[str, Any] | None) -> bool:
    """Whether a dispatcher works on the row or the ledger has to finish it, whatever view and table say."""
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
        return f"The row was deleted from {settings.control_table}; its history in the ledger is below."
    status = row[settings.column_status]
    if not waits:
        return f"{status}: {_closed(latest, status, settings)}"
    if latest is None or not latest["open"]:
        return _untouched(latest, settings, shown=shown) + (_HELD if held else "")
    return f"{status}: {_open(latest)}" + (_HELD if held else "")


def _closed(latest: dict[str, Any] | None, status: str, settings: Settings) -> str:
    if latest is None:
        return "no dispatch has taken this row."
    reason = (latest["reason"] or "").strip() or "no reason recorded"
    if latest["state"] == "QUARANTINED" and status == settings.status_failed:
        rule = f" Final because {sentence(latest['rule'])}" if latest["rule"] else ""
        back = f"`pm redrive` sets it back to {settings.status_waiting}."
        return f"refused in generation {latest['generation']}: {sentence(reason)}{rule} {back}"
    return f"generation {latest['generation']} ended as {latest['outcome'] or latest['state']}: {sentence(reason)}"


def _untouched(latest: dict[str, Any] | None, settings: Settings, *, shown: bool) -> str:
    status = settings.status_waiting
    if not shown:
        return (
            f"{status}: the view {settings.schema}.{settings.wait_view} does not show this row, so no dispatch takes"
            " it. Conditions of the view leave it out, such as a limit per job."
        )
    if latest is None:
        return f"{status}: no dispatch has taken it yet; the next one does, oldest rows first."
    return (
        f"{status}: requested again after generation {latest['generation']} ended as"
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
        return f"was put off ({clause(reason)}); its time has come, and the next dispatch takes it."
    if entry["state"] == "ACCEPTED" and refusals:
        said = sentence(refusals[-1])
        return (
            f"its call was accepted ({clause(reason)}), but {said} The next dispatch tries to write the status again."
        )
    who = f"dispatcher {entry['dispatcher_id']} ({entry['actor']})"
    if entry["dispatcher_alive"]:
        return f"{who} is working on it; the entry is {entry['state']}."
    when = f", not before {moment(entry['not_before'])}" if entry["backing_off"] else ""
    if entry["state"] == "SENDING":
        return (
            f"in doubt: the answer to a call of {who} was lost ({clause(reason)}), and the call may have taken effect."
            f" The next dispatch finds that out before it sends anything{when}."
        )
    return f"{who} ended and left the entry {entry['state']}; the next dispatch rescues it{when}."


def _print(story: dict[str, Any], settings: Settings) -> None:
    out = console()
    out.print(text(f"Row {story['run_id']} of {settings.control_table}", "bold"))
    out.print(story["why"])
    if story["question"]:
        out.print(text(sentence(f"Nothing is dispatched: {story['question']}"), "bold red"))
    facts = [(name, value) for name, value in (story["control_table"] or {}).items() if value is not None]
    if facts:
        out.print()
        out.print(table(_FACT_COLUMNS, facts))
    for entry in story["generations"]:
        _print_generation(out, entry)


def _print_generation(out: Console, entry: dict[str, Any]) -> None:
    title = f"Generation {entry['generation']}: {entry['branch']}, {entry['state']}, attempts {entry['attempts']}"
    out.print()
    out.print(text(title, "bold"))
    if entry["accepted_run_id"]:
        repair = f", repair {entry['accepted_repair_id']}" if entry["accepted_repair_id"] else ""
        out.print(f"run {entry['accepted_run_id']}{repair}  {entry['page_url'] or ''}", soft_wrap=True)
    out.print(table(_EVENT_COLUMNS, entry["events"]))
