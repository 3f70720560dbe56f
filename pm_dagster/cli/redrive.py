"""``pm redrive``: refused rows back to WAITING. Put here: the command. Keep out: its guard."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from pm_dagster.cli import connections
from pm_dagster.cli.numbers import RUN_ID
from pm_dagster.cli.output import Column, console, json_option, print_json, table
from pm_dagster.config.masking import scrubbed
from pm_dagster.config.settings import Settings
from pm_dagster.errors import ProcessManagerError
from pm_dagster.text import counted, escape_controls

if TYPE_CHECKING:
    from pm_dagster.ledger.redrive import Which

_COLUMNS = (
    Column("run id", right=True),
    Column("job", right=True),
    Column("refused at"),
    Column("reason", folds=True),
)
_SHOWN = 60
_LOCKED = "another session holds it locked, or it just moved on; the same command again takes it if it is still refused"


def _moment(_context: click.Context, _parameter: click.Parameter, value: str | None) -> datetime | None:
    """A time in ISO 8601."""
    try:
        return None if value is None else datetime.fromisoformat(value.strip())
    except ValueError:
        message = f"{value!a} is no time such as 2026-03-28T14:30, 2026-03-28 or 2026-03-28T14:30+01:00"
        raise click.BadParameter(message) from None


def _words(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    """A text that is not blank, which would be a part of every reason."""
    text = None if value is None else value.strip()
    if text is not None and (not text or any("\ud800" <= char <= "\udfff" for char in text)):
        raise click.BadParameter(f"{value!a} is no part of a reason")
    return text


@click.command("redrive")
@click.argument("run_ids", type=RUN_ID, nargs=-1, metavar="[RUN_ID]...")
@click.option("--reason", callback=_words, help="Rows whose reason contains this text, in upper or lower case.")
@click.option("--job", "job_id", type=RUN_ID, help="Rows of this Databricks job.")
@click.option("--since", metavar="TIME", callback=_moment, help="Rows refused at this time or later.")
@click.option("--before", metavar="TIME", callback=_moment, help="Rows refused before this time.")
@click.option("--dry-run", is_flag=True, help="Count and show the rows; write nothing.")
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
    """Put refused rows back to WAITING, after their cause is gone; doing it twice is harmless.

    Name the rows by RUN_ID..., or select them by --reason, --job, --since and --before; a row must match all that are
    given. A time without a zone is in the zone of the times that `pm status` shows.

    Only rows that Process Manager refused (status FAILED, last ledger entry QUARANTINED) are put
    back. Others are left as they are, and the reason is shown.
    """
    from pm_dagster.ledger.redrive import Which  # noqa: PLC0415

    which = Which(reason, job_id, since, before)
    if bool(run_ids) == bool(str(which)):
        raise click.UsageError("name the rows by RUN_ID..., or a class by --reason, --job, --since or --before")
    if since is not None and before is not None and _later(since, before):
        raise click.UsageError("--since is not earlier than --before: no row can be of that class")
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
        click.echo(
            f"Back to {settings.status_waiting}: {counted(len(done), 'row')}; the next dispatch takes what is there."
        )
    for run_id in done if named else ():
        click.echo(f"{run_id}: back to {settings.status_waiting}; the next dispatch takes it")
    for run_id, reason in list(kept.items())[: None if named else _SHOWN]:
        click.echo(escape_controls(f"{run_id}: left alone; {reason}"))
    if not named and len(kept) > _SHOWN:
        click.echo(f"... and {len(kept) - _SHOWN} more were left alone")


def _say_rows(rows: list[dict[str, Any]], settings: Settings, *, as_json: bool) -> None:
    if as_json:
        print_json({"dry_run": True, "count": len(rows), "rows": rows, "redriven": [], "left_alone": {}})
        return
    out = console()
    if rows:
        cells = [(row["run_id"], row["job_id"], row["refused_at"], row["reason"]) for row in rows[:_SHOWN]]
        out.print(table(_COLUMNS, cells))
        if len(rows) > _SHOWN:
            out.print(f"... and {len(rows) - _SHOWN} more")
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
        raise ProcessManagerError(f"no such row in {settings.control_table}: {', '.join(unknown)}")


def _why_not(row: dict[str, object], settings: Settings) -> str:
    status = row.get(settings.column_status)
    if status == settings.status_failed:
        return f"it is {status}, but Process Manager did not refuse it"
    return f"it is {status}, not refused"
