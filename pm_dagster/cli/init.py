"""``pm init``: the ledger's schema, and what became of a ledger that stands elsewhere than it was made.

Put here: the command. Keep out: the migrations, and how places compare.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pm_dagster.cli import connections
from pm_dagster.cli.output import json_option, print_json
from pm_dagster.dispatch.ledger_location import Answer
from pm_dagster.text import sentence

if TYPE_CHECKING:
    from pm_dagster.ledger.migrate import Migrated

_DONE = {
    Answer.MOVED: "The ledger goes on here, with the identity and the open entries that it had.",
    Answer.COPY: "This ledger is a copy with an identity of its own from now on; what came along open is closed.",
}


@click.command("init")
@click.option("--moved", is_flag=True, help="Say that the ledger's original is not used any more: it moved here.")
@click.option("--copy", is_flag=True, help="Say that the ledger's original goes on: this one is a copy of it.")
@json_option
def command(*, moved: bool, copy: bool, as_json: bool) -> None:
    """Create or upgrade the ledger (schema process_manager). Running it again changes nothing.

    A ledger that is found in another server or database than the one where it was made dispatches nothing until
    --moved or --copy says which it is.
    """
    from pm_dagster.ledger.migrate import initialise  # noqa: PLC0415

    if moved and copy:
        raise click.UsageError("--moved and --copy exclude each other: is the original still used?")
    answer = Answer.MOVED if moved else Answer.COPY if copy else None
    migrated = initialise(connections.settings(), answer)
    if as_json:
        keys = ("before", "after", "answered", "question")
        print_json({key: getattr(migrated, key) for key in keys})
    else:
        _tell(migrated, answer)


def _tell(migrated: Migrated, answer: Answer | None) -> None:
    if migrated.before == migrated.after:
        click.echo(f"The ledger is at version {migrated.after} already; nothing to do.")
    else:
        click.echo(f"The ledger is now at version {migrated.after}; before: {migrated.before or 'there was none'}.")
    if migrated.answered and answer is not None:
        click.echo(_DONE[answer])
    elif answer is not None:
        click.echo("It stands where it is recorded to stand: there was nothing to answer, and nothing was changed.")
    if migrated.question:
        click.echo(sentence(f"Beware: {migrated.question}"))
