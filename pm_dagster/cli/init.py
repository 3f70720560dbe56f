"""``pm init``: the ledger's schema. Put here: the command. Keep out: the migrations."""

from __future__ import annotations

import click

from pm_dagster.cli import connections
from pm_dagster.cli.output import json_option, print_json


@click.command("init")
@json_option
def command(*, as_json: bool) -> None:
    """Create or upgrade the ledger (schema process_manager). Running it again changes nothing."""
    from pm_dagster.postgres.migrate import initialise  # noqa: PLC0415

    migrated = initialise(connections.settings())
    if as_json:
        print_json({"before": migrated.before, "after": migrated.after})
    elif migrated.before == migrated.after:
        click.echo(f"The ledger is at version {migrated.after} already; nothing to do.")
    else:
        click.echo(f"The ledger is now at version {migrated.after}; before: {migrated.before or 'there was none'}.")
