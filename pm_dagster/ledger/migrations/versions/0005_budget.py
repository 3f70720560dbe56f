"""What the dispatchers of a workspace share about its API."""

from __future__ import annotations

from alembic import op

from pm_dagster.ledger.schema import LEDGER_SCHEMA

revision = "0005"
down_revision = "0004"

_STATEMENTS: tuple[str, ...] = (
    # Nothing in it has to outlast a crash, so no write waits for a disk. Rewritten in place, with room in the page.
    """CREATE UNLOGGED TABLE {schema}.api_budget (
        workspace text PRIMARY KEY,
        record jsonb,
        updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
    ) WITH (fillfactor = 30, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500)""",
    """COMMENT ON TABLE {schema}.api_budget IS
        'The last calls of the dispatchers of a workspace, and what they learned of its limits. It may be emptied.'""",
)


def upgrade() -> None:
    """Run the statements in order."""
    for statement in _STATEMENTS:
        op.get_bind().exec_driver_sql(statement.format(schema=LEDGER_SCHEMA))
