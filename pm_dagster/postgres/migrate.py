"""Creates the ledger and brings it up to date, with Alembic.

Kept apart from everything a dispatch imports: the cluster has no SQLAlchemy and needs none.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from pm_dagster.core.errors import ConfigurationError
from pm_dagster.core.settings import Settings
from pm_dagster.postgres.connection import connect, translated
from pm_dagster.postgres.layout import ledger_version
from pm_dagster.postgres.schema import LEDGER_SCHEMA, LOCK_CLASS

#: Two that migrate at once take turns on this advisory lock.
_MIGRATION_LOCK = 0


@dataclass(frozen=True)
class Migrated:
    """The ledger's version before (None: there was none) and after."""

    before: str | None
    after: str


def initialise(settings: Settings) -> Migrated:
    """Create or upgrade the ledger; safe to run twice, and by two at once.

    Raises ControlPlaneUnavailable when the database does not answer, ConfigurationError when it refuses.
    """
    with translated():
        connection = connect(settings)
    try:
        with translated(), connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(%s, %s)", (LOCK_CLASS, _MIGRATION_LOCK))
            connection.commit()
        before = ledger_version(connection)
        connection.commit()
        _upgrade(settings)
        after = ledger_version(connection)
    finally:
        connection.close()
    return Migrated(before, after or "none")


def _upgrade(settings: Settings) -> None:
    engine = create_engine("postgresql+psycopg2://", creator=lambda: connect(settings), poolclass=NullPool)
    try:
        with engine.begin() as sql:
            sql.exec_driver_sql(f"CREATE SCHEMA IF NOT EXISTS {LEDGER_SCHEMA}")
            config = Config()
            config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
            config.attributes["connection"] = sql
            command.upgrade(config, "head")
    except DBAPIError as error:
        message = f"the ledger could not be created: {str(error.orig).strip().splitlines()[0]}"
        raise ConfigurationError(message) from None
    finally:
        engine.dispose()
