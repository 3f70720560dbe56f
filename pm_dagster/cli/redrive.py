"""``pm redrive``: sets refused rows back to WAITING, by their ids or by class."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from pm_dagster.cli import connections
from pm_dagster.cli.options import JOB_ID, RUN_ID, TIME, json_option
from pm_dagster.cli.output import Column, console, print_json, table
from pm_dagster.config.masking import scrubbed
from pm_dagster.config.settings import Settings
from pm_dagster.errors import ProcessManagerError
from pm_dagster.text import counted, escape_controls

if TYPE_CHECKING:
    from pm_dagster.ledger.redrive import Which

_COLUMNS: tuple[Column[dict[str, Any]], ...] = (
    Column("run id", lambda row: row["run_id"], right=True),
    Column("job", lambda row: row["job_id"], right=True),
    Column("refused at", lambda row: row["refused_at"]),
    Column("reason", lambda row: row["reason"], folds=True),
)
_SHOWN = 60
_LOCKED = "another session locks it, or it just changed; run the command again"


def _words(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    """A text that is not blank, which would be a part of every reason."""
    text = None if value is None else value.strip()
    if text is not None and (not text or any("\ud800" <= char <= "\udfff" for char in text)):
        raise click.BadParameter(f"{value!a} is blank or not a text; give a part of the reason.")
    return text


@click.command("redrive")
@click.argument("run_ids", type=RUN_ID, nargs=-1, metavar="[RUN_ID]...")
@click.option(
    "--reason", metavar="TEXT", callback=_words, help="Rows whose reason contains TEXT, in upper or lower case."
)
@click.option("--job", "job_id", type=JOB_ID, help="Rows of this Databricks job.")
@click.option("--since", type=TIME, help="Rows refused at this time or later.")
@click.option("--before", type=TIME, help="Rows refused before this time.")
@click.option("--dry-run", is_flag=True, help="Show the rows and their number; write nothing.")
@json_option
def command(
    run_ids: tuple[int, ...],
    reason: str | None,
    job_id: int | None,
    since: datetime | None,
    before: datetime | None,
    *,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Set refused rows back to WAITING once their cause is gone. Running it again does no harm.

    Name the rows by RUN_ID, or select them by --reason, --job, --since and --before; a row must match all that are
    given. A time without a zone is in the time zone of the database session, as `pm status` shows times.

    Only rows that Process Manager refused are set back: their status is FAILED and their last ledger entry
    QUARANTINED. All others are left as they are, and the command says why.
    """
    from pm_dagster.ledger.redrive import Which  # noqa: PLC0415

    which = Which(reason, job_id, since, before)
    if bool(run_ids) == bool(str(which)):
        raise click.UsageError("give either RUN_ID... or some of --reason, --job, --since and --before")
    if since is not None and before is not None and _later(since, before):
        raise click.UsageError("--since must be earlier than --before")
    settings = connections.settings()
    if dry_run:
        _say_rows(_would(settings, run_ids) if run_ids else list(_class(settings, which)), settings, as_json=as_json)
        return
    done, kept = _redrive(settings, run_ids) if run_ids else _redrive_class(settings, which)
    if as_json:
        print_json({"redriven": done, "left_alone": kept})
        return
    _say_done(done, kept, settings, named=bool(run_ids))


def _later(since: datetime, before: datetime) -> bool:
    """True when no time is between them; two of which one has no zone cannot be compared here."""
    return (since.tzinfo is None) == (before.tzinfo is None) and since >= before


def _say_done(done: list[int], kept: dict[int, str], settings: Settings, *, named: bool) -> None:
    if not named:
        click.echo(_summary(len(done), settings) if done or kept else "No refused row matches; nothing was changed.")
    for run_id in done if named else ():
        click.echo(f"{run_id}: {settings.status_waiting} again; the next dispatch takes it")
    for run_id, reason in list(kept.items())[: None if named else _SHOWN]:
        click.echo(escape_controls(f"{run_id}: not changed: {reason}"))
    if not named and len(kept) > _SHOWN:
        click.echo(f"({len(kept) - _SHOWN} more were not changed)")


def _summary(number: int, settings: Settings) -> str:
    if number == 1:
        return f"1 row is {settings.status_waiting} again; the next dispatch takes it."
    return f"{number} rows are {settings.status_waiting} again; the next dispatch takes them."


def _say_rows(rows: list[dict[str, Any]], settings: Settings, *, as_json: bool) -> None:
    if as_json:
        print_json({"dry_run": True, "count": len(rows), "rows": rows, "redriven": [], "left_alone": {}})
        return
    out = console()
    if rows:
        out.print(table(_COLUMNS, rows[:_SHOWN]))
        if len(rows) > _SHOWN:
            out.print(f"({len(rows) - _SHOWN} more are not shown)")
        out.print()
    out.print(f"{counted(len(rows), 'row')} would go back to {settings.status_waiting}; nothing was written.")


def _would(settings: Settings, run_ids: tuple[int, ...]) -> list[dict[str, Any]]:
    """Of the named rows, those that would go back."""
    from pm_dagster.ledger import redrive  # noqa: PLC0415
    from pm_dagster.ledger.layout import read_layout  # noqa: PLC0415
    from pm_dagster.ledger.schema import check_ledger  # noqa: PLC0415

    with connections.reader(settings) as connection:
        check_ledger(connection)
        read_layout(connection, settings)
        _demand_known(connection, settings, run_ids)
        rows = redrive.refused_rows(connection, settings, redrive.Which(), run_ids=run_ids, limit=len(run_ids))
    return [_shown(row) for row in rows]


def _class(settings: Settings, which: Which) -> Iterator[dict[str, Any]]:
    """The rows of a class, each batch over a connection of its own: no transaction is open for long."""
    for _, rows in _batches(settings, which, read_only=True):
        yield from map(_shown, rows)


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "entry_id"}


def _batches(settings: Settings, which: Which, *, read_only: bool) -> Iterator[tuple[Any, list[dict[str, Any]]]]:
    from pm_dagster.ledger import redrive  # noqa: PLC0415
    from pm_dagster.ledger.connection import transaction  # noqa: PLC0415
    from pm_dagster.ledger.layout import read_layout  # noqa: PLC0415
    from pm_dagster.ledger.schema import check_ledger  # noqa: PLC0415

    after = 0
    while True:
        with transaction(settings, read_only=read_only) as connection:
            check_ledger(connection)
            read_layout(connection, settings)
            rows = redrive.refused_rows(connection, settings, which, after=after)
            yield connection, rows
        if len(rows) < redrive.BATCH:
            return
        after = rows[-1]["entry_id"]


def _redrive_class(settings: Settings, which: Which) -> tuple[list[int], dict[int, str]]:
    from pm_dagster.ledger import redrive  # noqa: PLC0415

    done: list[int] = []
    kept: dict[int, str] = {}
    actor = connections.actor("pm redrive")
    # What is told to the ledger stays there for everybody to read.
    told = redrive.Which(which.reason and scrubbed(which.reason), which.job_id, which.since, which.before)
    for connection, rows in _batches(settings, which, read_only=False):
        run_ids = [row["run_id"] for row in rows]
        back = set(redrive.redrive(connection, settings, run_ids, actor, which, told=str(told))) if rows else set()
        done += [run_id for run_id in run_ids if run_id in back]
        kept |= {run_id: _LOCKED for run_id in run_ids if run_id not in back}
    return done, kept


def _redrive(settings: Settings, run_ids: tuple[int, ...]) -> tuple[list[int], dict[int, str]]:
    from pm_dagster.ledger import reads as history  # noqa: PLC0415
    from pm_dagster.ledger import redrive  # noqa: PLC0415
    from pm_dagster.ledger.connection import transaction  # noqa: PLC0415
    from pm_dagster.ledger.layout import read_layout  # noqa: PLC0415
    from pm_dagster.ledger.schema import check_ledger  # noqa: PLC0415

    with transaction(settings, read_only=False) as connection:
        check_ledger(connection)
        read_layout(connection, settings)
        _demand_known(connection, settings, run_ids)
        done = redrive.redrive(connection, settings, run_ids, connections.actor("pm redrive"))
        kept = {
            run_id: _why_not(history.control_row(connection, settings, run_id) or {}, settings)
            for run_id in dict.fromkeys(run_ids)
            if run_id not in done
        }
    return done, kept


def _demand_known(connection: Any, settings: Settings, run_ids: tuple[int, ...]) -> None:  # noqa: ANN401 the driver's, not imported here
    from pm_dagster.ledger import reads as history  # noqa: PLC0415

    unknown = [str(run_id) for run_id in run_ids if history.control_row(connection, settings, run_id) is None]
    if unknown:
        ids = f"{settings.column_run_id} {', '.join(unknown)}"
        raise ProcessManagerError(f"there is no row with {ids} in {settings.control_table}; nothing was changed")


def _why_not(row: dict[str, object], settings: Settings) -> str:
    status = row.get(settings.column_status)
    if status == settings.status_failed:
        return f"its status is {status}, but Process Manager did not refuse it"
    return f"its status is {status}; only a refused row is set back"
