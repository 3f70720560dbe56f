"""``pm grants``: the rights that a role needs, as SQL."""

from __future__ import annotations

import click

from pm_dagster.cli import connections

_PARTS = ("dispatcher", "reader", "migrator")


@click.command("grants")
@click.option("--role", metavar="NAME", required=True, help="The database role.")
@click.option(
    "--for", "part", type=click.Choice(_PARTS), default=_PARTS[0], show_default=True, help="What the role does."
)
def command(role: str, part: str) -> None:
    """Print the SQL that gives a database role the rights that it needs, and no more. It only reads.

    The owner of view, table and ledger runs it: pm grants --role NAME | psql -v ON_ERROR_STOP=1
    """
    from pm_dagster.ledger import grants  # noqa: PLC0415

    settings = connections.settings()
    with connections.reader(settings) as connection:
        click.echo(grants.script(connection, settings, grants.Part(part), role), nl=False)
