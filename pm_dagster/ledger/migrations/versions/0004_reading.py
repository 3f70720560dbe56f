"""Indexes for what `pm status` reads of a ledger with a million entries."""

from __future__ import annotations

from alembic import op

from pm_dagster.ledger.schema import LEDGER_SCHEMA

revision = "0004"
down_revision = "0003"

_STATEMENTS: tuple[str, ...] = (
    # How many entries are in which state. An entry comes in when it is closed, and stays.
    "CREATE INDEX entry_closed ON {schema}.entry (control_table, state) WHERE NOT open",
    # Which rows were refused last.
    "CREATE INDEX entry_refused ON {schema}.entry (control_table, updated_at) WHERE state = 'QUARANTINED'",
    # How many entries the last dispatchers had.
    "CREATE INDEX entry_dispatcher ON {schema}.entry (dispatcher_id)",
)


def upgrade() -> None:
    """Run the statements in order."""
    for statement in _STATEMENTS:
        op.get_bind().exec_driver_sql(statement.format(schema=LEDGER_SCHEMA))
