"""Each dispatcher's row counts its writes, so that a COMMIT whose answer was lost is not done twice."""

from __future__ import annotations

from alembic import op

from pm_dagster.ledger.schema import LEDGER_SCHEMA

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the number of the last write."""
    table = f"{LEDGER_SCHEMA}.dispatcher"
    op.get_bind().exec_driver_sql(f"ALTER TABLE {table} ADD COLUMN writes bigint NOT NULL DEFAULT 0")
