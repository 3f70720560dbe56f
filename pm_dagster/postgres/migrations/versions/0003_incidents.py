"""What the ledger has to know so that rows, runs and databases are not taken for others."""

from __future__ import annotations

from alembic import op

from pm_dagster.postgres.schema import LEDGER_SCHEMA

revision = "0003"
down_revision = "0002"

_STATEMENTS: tuple[str, ...] = ()


def upgrade() -> None:
    """Run the statements in order."""
    for statement in _STATEMENTS:
        op.get_bind().exec_driver_sql(statement.format(schema=LEDGER_SCHEMA))
