"""The names of the ledger: its schema and the version this code was written for; and how names are quoted."""

from __future__ import annotations

from psycopg2 import sql

LEDGER_SCHEMA = "process_manager"
#: Gives dispatchers their ids; the one sequence that is used by its name.
LEDGER_SEQUENCE = f"{LEDGER_SCHEMA}.dispatcher_dispatcher_id_seq"
#: The migration that must have been applied; ``pm init`` brings the database there.
LEDGER_VERSION = "0003"
#: First key of the advisory locks that living dispatchers hold; the second is the dispatcher's id.
LOCK_CLASS = 0x504D
#: First key of the advisory locks under which a run that was found becomes a row's; the second is made of the run's id.
RUN_LOCK_CLASS = 0x504E


def quoted(*names: str) -> sql.Identifier:
    """Names as an identifier of a statement that has parameters: the driver reads a lone per cent sign as one."""
    return sql.Identifier(*(name.replace("%", "%%") for name in names))
