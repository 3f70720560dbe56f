"""The names of the ledger: its schema and the version this code was written for."""

from __future__ import annotations

LEDGER_SCHEMA = "process_manager"
#: The migration that must have been applied; ``pm init`` brings the database there.
LEDGER_VERSION = "0001"
#: First key of the advisory locks that living dispatchers hold; the second is the dispatcher's id.
LOCK_CLASS = 0x504D
