"""Runs the migrations on the connection that ``pm_dagster.ledger.migrate`` hands over, in its transaction."""

from __future__ import annotations

from alembic import context

from pm_dagster.ledger.schema import LEDGER_SCHEMA

context.configure(
    connection=context.config.attributes["connection"],
    version_table_schema=LEDGER_SCHEMA,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
