"""``pm redrive``: refused rows back to WAITING. Put here: the command. Keep out: its guard."""

from __future__ import annotations

import os
import socket

import click

from pm_dagster.cli import connections
from pm_dagster.cli.numbers import RUN_ID
from pm_dagster.cli.output import json_option, print_json
from pm_dagster.core.errors import ProcessManagerError
from pm_dagster.core.settings import Settings
from pm_dagster.core.visible import visible


@click.command("redrive")
@click.argument("run_ids", type=RUN_ID, nargs=-1, required=True, metavar="RUN_ID...")
@json_option
def command(run_ids: tuple[int, ...], *, as_json: bool) -> None:
    """Put refused rows back to WAITING, after their cause is gone; doing it twice is harmless.

    Only rows that Process Manager refused (status FAILED, last ledger entry QUARANTINED) are put
    back; others are left alone and told why.
    """
    settings = connections.settings()
    done, kept = _redrive(settings, run_ids)
    if as_json:
        print_json({"redriven": done, "left_alone": kept})
        return
    for run_id in done:
        click.echo(f"{run_id}: back to {settings.status_waiting}; the next dispatch takes it")
    for run_id, reason in kept.items():
        click.echo(visible(f"{run_id}: left alone; {reason}"))


def _redrive(settings: Settings, run_ids: tuple[int, ...]) -> tuple[list[int], dict[int, str]]:
    from pm_dagster.postgres import history, redrive  # noqa: PLC0415
    from pm_dagster.postgres.asking import asking  # noqa: PLC0415
    from pm_dagster.postgres.layout import check_ledger, read_layout  # noqa: PLC0415

    with asking(settings, read_only=False) as connection:
        check_ledger(connection)
        read_layout(connection, settings)
        rows = {run_id: history.control_row(connection, settings, run_id) for run_id in run_ids}
        unknown = [str(run_id) for run_id, row in rows.items() if row is None]
        if unknown:
            raise ProcessManagerError(f"no such row in {settings.control_table}: {', '.join(unknown)}")
        actor = f"pm redrive on {socket.gethostname()}, process {os.getpid()}"
        done = redrive.redrive(connection, settings, run_ids, actor)
        kept = {
            run_id: _why_not(history.control_row(connection, settings, run_id) or {}, settings)
            for run_id in dict.fromkeys(run_ids)
            if run_id not in done
        }
    return done, kept


def _why_not(row: dict[str, object], settings: Settings) -> str:
    status = row.get(settings.column_status)
    if status == settings.status_failed:
        return f"it is {status}, but Process Manager did not refuse it"
    return f"it is {status}, not refused"
