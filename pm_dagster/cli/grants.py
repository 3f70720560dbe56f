"""``pm grants``: the rights that a role needs, as SQL. Put here: the command. Keep out: the list of rights."""

from __future__ import annotations

import click

from pm_dagster.cli import connections

_PARTS = ("dispatcher", "reader", "migrator")


@click.command("grants")
@click.option("--role", required=True, help="Name of the database role.")
@click.option("--for", "part", type=click.Choice(_PARTS), default=_PARTS[0], show_default=True, help="What it does.")
def command(role: str, part: str) -> None:
    """Print the statements that give a role what it needs, and no more, for the present settings; changes nothing.

    For psql, run as the owner of view, table and ledger: pm grants --role NAME | psql -v ON_ERROR_STOP=1
    """
    from pm_dagster.ledger import grants  # noqa: PLC0415

    settings = connections.settings()
    with connections.reader(settings) as connection:
        click.echo(grants.script(connection, settings, grants.Part(part), role), nl=False)
