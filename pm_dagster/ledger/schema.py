"""The names of the ledger: its schema, its locks, the version that this code was written for and the check of it."""

from __future__ import annotations

from psycopg2 import sql
from psycopg2.extensions import connection as Connection  # noqa: N812 the driver's class has a lower-case name

from pm_dagster.errors import ConfigurationError
from pm_dagster.ledger.connection import translated

LEDGER_SCHEMA = "process_manager"
#: Gives dispatchers their ids; the one sequence that is used by its name.
LEDGER_SEQUENCE = f"{LEDGER_SCHEMA}.dispatcher_dispatcher_id_seq"
#: The migration that must have been applied; ``pm init`` brings the database there.
LEDGER_VERSION = "0005"
#: First key of the advisory locks that living dispatchers hold; the second is the dispatcher's id.
LOCK_CLASS = 0x504D
#: First key of the advisory locks under which a run that was found becomes a row's; the second is made of the run's id.
RUN_LOCK_CLASS = 0x504E


def quoted(*names: str) -> sql.Identifier:
    """Names as an identifier of a statement that has parameters: the driver reads a lone per cent sign as one."""
    return sql.Identifier(*(name.replace("%", "%%") for name in names))


def check_ledger(connection: Connection) -> None:
    """Raise ConfigurationError unless the ledger exists at the version this code was written for."""
    found = ledger_version(connection)
    if found is None:
        message = f"the ledger (schema {LEDGER_SCHEMA}) does not exist in this database: run `pm init` once"
        raise ConfigurationError(message)
    if found != LEDGER_VERSION:
        message = f"the ledger is at version {found}, this program needs {LEDGER_VERSION}: run `pm init`"
        raise ConfigurationError(message)


def ledger_version(connection: Connection) -> str | None:
    """The ledger's version, None when there is no ledger."""
    with translated(), connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass(%s)", (f"{LEDGER_SCHEMA}.alembic_version",))
        row = cursor.fetchone()
        if row is None or row[0] is None:
            return None
        cursor.execute(f"SELECT version_num FROM {LEDGER_SCHEMA}.alembic_version")
        version = cursor.fetchone()
    return None if version is None else str(version[0])
