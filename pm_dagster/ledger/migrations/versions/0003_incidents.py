"""What the ledger has to know so that rows, runs and databases are not taken for others."""

from __future__ import annotations

from alembic import op

from pm_dagster.ledger.schema import LEDGER_SCHEMA

revision = "0003"
down_revision = "0002"

_STATEMENTS: tuple[str, ...] = (
    # Who asks whether a dispatcher lives has to know since when nothing was heard of it: a lost connection is no death.
    "ALTER TABLE {schema}.dispatcher ADD COLUMN seen_at timestamptz",
    "CREATE INDEX dispatcher_actor ON {schema}.dispatcher (actor)",
    # A ledger that was restored, copied or moved has to notice it: its identity is part of every idempotency token.
    """ALTER TABLE {schema}.identity
        ADD COLUMN made_database text, ADD COLUMN made_hosts text[], ADD COLUMN made_system text,
        ADD COLUMN made_timeline text, ADD COLUMN made_at timestamptz""",
    "ALTER TABLE {schema}.dispatcher ADD COLUMN hosts text[]",
    # A row that its owner corrects is told from one whose view shows another value each time: the version of the
    # table's row at the claim. An entry is superseded when it was closed because its row had been corrected.
    """ALTER TABLE {schema}.entry
        ADD COLUMN row_version text, ADD COLUMN superseded boolean NOT NULL DEFAULT false""",
    # Whose run is it? Asked before a run that was found is taken for a row's.
    "CREATE INDEX entry_run ON {schema}.entry (accepted_run_id) WHERE accepted_run_id IS NOT NULL",
    "CREATE INDEX entry_previous ON {schema}.entry (previous_run_id) WHERE open AND state = 'SENDING'",
    # Which rule made a refusal final.
    "ALTER TABLE {schema}.entry ADD COLUMN rule text",
)


def upgrade() -> None:
    """Run the statements in order."""
    for statement in _STATEMENTS:
        op.get_bind().exec_driver_sql(statement.format(schema=LEDGER_SCHEMA))
