"""The ledger's first form."""

from __future__ import annotations

from pathlib import Path

from alembic import op

from pm_dagster.ledger.schema import LEDGER_SCHEMA

revision = "0001"
down_revision: str | None = None


def upgrade() -> None:
    """Create the ledger's tables."""
    statements = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(statements.format(schema=LEDGER_SCHEMA))
