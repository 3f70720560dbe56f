"""``pm init``: creates or upgrades the ledger, and takes the answer of its operator when it was moved or copied."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pm_dagster.cli import connections
from pm_dagster.cli.options import json_option
from pm_dagster.cli.output import print_json
from pm_dagster.dispatch.ledger_location import Answer
from pm_dagster.text import sentence

if TYPE_CHECKING:
    from pm_dagster.ledger.migrate import Migrated

_DONE = {
    Answer.MOVED: "The ledger continues here, with its identity and its open entries.",
    Answer.COPY: "The ledger has an identity of its own now. The open entries that it was copied with are closed.",
}


@click.command("init")
@click.option("--moved", is_flag=True, help="The ledger moved here: its original is no longer used.")
@click.option("--copy", is_flag=True, help="The ledger is a copy: its original is still used.")
@json_option
def command(*, moved: bool, copy: bool, as_json: bool) -> None:
    """Create or upgrade the ledger (schema process_manager). Running it again changes nothing.

    A ledger remembers the server and database where it was made. When it is found in another place, nothing is
    dispatched until --moved or --copy says which of the two happened.
    """
    from pm_dagster.ledger.migrate import initialise  # noqa: PLC0415

    if moved and copy:
        raise click.UsageError(
            "give either --moved (the original is no longer used) or --copy (it is still used), not both"
        )
    answer = Answer.MOVED if moved else Answer.COPY if copy else None
    migrated = initialise(connections.settings(), answer)
    if as_json:
        keys = ("before", "after", "answered", "question")
        print_json({key: getattr(migrated, key) for key in keys})
    else:
        _tell(migrated, answer)


def _tell(migrated: Migrated, answer: Answer | None) -> None:
    if migrated.before == migrated.after:
        click.echo(f"The ledger is at version {migrated.after}; there is nothing to upgrade.")
    elif migrated.before is None:
        click.echo(f"The ledger is created, at version {migrated.after}.")
    else:
        click.echo(f"The ledger is upgraded from version {migrated.before} to {migrated.after}.")
    if migrated.answered and answer is not None:
        click.echo(_DONE[answer])
    elif answer is not None:
        click.echo(f"The ledger is where it was made: --{answer.value} is not needed and changes nothing.")
    if migrated.question:
        click.echo(sentence(f"Nothing is dispatched: {migrated.question}"))
