"""What the ledger has to know so that rows, runs and databases are not taken for others."""

from __future__ import annotations

from alembic import op

from pm_dagster.postgres.schema import LEDGER_SCHEMA

revision = "0003"
down_revision = "0002"

_STATEMENTS: tuple[str, ...] = (
    # Who asks whether a dispatcher lives has to know since when nothing was heard of it: a lost connection is no death.
    "ALTER TABLE {schema}.dispatcher ADD COLUMN seen_at timestamptz",
    "CREATE INDEX dispatcher_actor ON {schema}.dispatcher (actor)",
)


def upgrade() -> None:
    """Run the statements in order."""
    for statement in _STATEMENTS:
        op.get_bind().exec_driver_sql(statement.format(schema=LEDGER_SCHEMA))
