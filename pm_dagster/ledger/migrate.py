"""Creates the ledger and brings it up to date, with Alembic.

Kept apart from everything a dispatch imports: the cluster has no SQLAlchemy and needs none.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import psycopg2
from alembic import command
from alembic.config import Config
from psycopg2.extensions import connection as DriverConnection  # noqa: N812 the driver's class has a lower-case name
from sqlalchemy import Connection, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from pm_dagster.config.settings import Settings
from pm_dagster.dispatch.ledger_location import Answer
from pm_dagster.errors import ConfigurationError, ProcessManagerError
from pm_dagster.ledger import location
from pm_dagster.ledger.connection import connect, transaction, translate, watched
from pm_dagster.ledger.schema import LEDGER_SCHEMA, LOCK_CLASS, ledger_version

#: Two that migrate at once take turns on this advisory lock. It ends with the transaction, as nothing that a session
#: holds may stay behind in the connection of a pooler.
_MIGRATION_LOCK = 0
#: Whatever stands in the way of a change of our tables also holds up, behind us, everybody who uses them.
_TIMEOUTS = "SET LOCAL lock_timeout = '20s'; SET LOCAL statement_timeout = '120s'"
_LONGEST_SECONDS = 180.0


@dataclass(frozen=True)
class Migrated:
    """The ledger's version before (None: there was none) and after.

    ``answered`` when an answer changed something; ``question`` is what the ledger still asks of its operator.
    """

    before: str | None
    after: str
    answered: bool = False
    question: str = ""


def initialise(settings: Settings, answer: Answer | None = None) -> Migrated:
    """Create or upgrade the ledger; safe to run twice, and by two at once: it is one transaction.

    ``answer`` says what became of a ledger that stands elsewhere than it was made. Raises ControlPlaneUnavailable when
    the database does not answer, ConfigurationError when it refuses.
    """
    engine = create_engine("postgresql+psycopg2://", creator=lambda: connect(settings), poolclass=NullPool)
    try:
        with engine.begin() as sql:
            before = _upgrade(sql)
            raw = cast("DriverConnection", sql.connection.driver_connection)
            location.record_if_new(raw)
            answered = answer is not None and location.answer(raw, answer)
            question = location.question(raw)
    except DBAPIError as error:
        raise _ours(error) from None
    finally:
        engine.dispose()
    with transaction(settings) as connection:
        return Migrated(before, ledger_version(connection) or "none", answered, question)


def _upgrade(sql: Connection) -> str | None:
    """Bring the ledger up to date; gives its version before."""
    raw = cast("DriverConnection", sql.connection.driver_connection)
    with watched(raw, _LONGEST_SECONDS):
        sql.exec_driver_sql(_TIMEOUTS)
        sql.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCK_CLASS}, {_MIGRATION_LOCK})")
        before = ledger_version(raw)
        # CREATE SCHEMA takes a right on the whole database, even IF NOT EXISTS: its owner may have made ours for us.
        if sql.exec_driver_sql(f"SELECT to_regnamespace('{LEDGER_SCHEMA}')").scalar() is None:
            sql.exec_driver_sql(f"CREATE SCHEMA {LEDGER_SCHEMA}")
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        config.attributes["connection"] = sql
        command.upgrade(config, "head")
    return before


def _ours(error: DBAPIError) -> ProcessManagerError:
    if not isinstance(error.orig, psycopg2.Error):
        return ConfigurationError(f"the ledger could not be created: {str(error.orig).strip().splitlines()[0]}")
    ours = translate(error.orig)
    return type(ours)(f"the ledger could not be created: {ours}")
