"""A database whose owner gives nothing away, and roles that have what `pm grants` prints.

Put here: roles, and a round of everything that a dispatcher or a reader does. Keep out: expectations.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from typing import Any

from pm_dagster.config.settings import Settings
from pm_dagster.dispatch.in_doubt import intent_committed
from pm_dagster.dispatch.service import Dispatch
from pm_dagster.dispatch.waiting_job import sort_rows
from pm_dagster.errors import ProcessManagerError
from pm_dagster.ledger import grants
from pm_dagster.ledger import reads as history
from pm_dagster.ledger.connection import connect
from pm_dagster.ledger.control_plane import PostgresControlPlane
from pm_dagster.ledger.grants import Part
from pm_dagster.ledger.redrive import redrive
from pm_dagster.ledger.schema import check_ledger
from pm_dagster_tests.contracts import steps
from pm_dagster_tests.fakes.runs import InMemoryRuns
from pm_dagster_tests.ledger.postgres_control_table import PostgresControlTable

_numbers = itertools.count()
#: What PUBLIC has from the start, and would hide a right that the list lacks.
_CLOSED = "REVOKE ALL ON SCHEMA public FROM PUBLIC"
_FAST: dict[str, Any] = {
    "rate_run_now": 500,
    "rate_repair": 500,
    "rate_get_run": 500,
    "call_backoff_seconds": 0,
    "settle_seconds": 0,
}


class Role:
    """A role of this test's own; the server has one set of them for all databases."""

    def __init__(self, table: PostgresControlTable, part: Part) -> None:
        self.table, self.part = table, part
        self.name = f"role {os.getpid()} {next(_numbers)}"
        self.table.ask(f'CREATE ROLE "{self.name}" LOGIN')
        self.settings = replace(table.settings, postgres_user=self.name, concurrency=2, **_FAST)

    @property
    def script(self) -> str:
        """What `pm grants` prints for it."""
        with closing(connect(self.table.settings)) as connection:
            return grants.script(connection, self.table.settings, self.part, self.name)

    @property
    def rights(self) -> list[str]:
        """The single GRANT statements."""
        return [line.partition(";")[0] for line in self.script.splitlines() if line.startswith("GRANT ")]

    @contextmanager
    def without(self, grant: str) -> Iterator[None]:
        """The role for as long as it lacks this right."""
        self.table.ask(grant.replace("GRANT ", "REVOKE ", 1).replace(" TO ", " FROM "))
        try:
            yield
        finally:
            self.table.ask(grant)


@contextmanager
def role(table: PostgresControlTable, part: Part) -> Iterator[Role]:
    """A role with its rights, gone afterwards."""
    table.ask(_CLOSED)
    made = Role(table, part)
    try:
        table.ask(made.script)
        yield made
    finally:
        table.ask(f'DROP OWNED BY "{made.name}"')
        table.ask(f'DROP ROLE "{made.name}"')


def dispatch_everything(table: PostgresControlTable, settings: Settings) -> None:
    """Do all that a dispatcher ever does. Raises ProcessManagerError when it may not."""
    runs = InMemoryRuns(jobs=(1001,))
    refused, new, repair = table.add(job_id=None), table.add(), table.add(previous=runs.failed_run(1001))
    with _dispatcher(settings) as dead:
        sent, *_ = dead.claim(steps.seen(dead))
        dead.intend([intent_committed(sent)])
        table.die(dead)
    with _dispatcher(settings) as control:
        control.backlog()
        Dispatch(control, runs, settings).run()
    assert [table.status(row) for row in (refused, new, repair)] == ["FAILED", "SCHEDULED", "SCHEDULED"]
    read_everything(settings)
    with closing(connect(settings)) as connection:
        assert redrive(connection, settings, [refused], "a test") == [refused]


def doctor_is_content(settings: Settings) -> bool:
    """Whether `pm doctor` finds nothing to say of this role's rights."""
    try:
        with closing(connect(settings)) as connection:
            check_ledger(connection)
            return not grants.missing_privileges(connection, settings)
    except ProcessManagerError:
        return False


def read_everything(settings: Settings) -> None:
    """What status, plan and explain read."""
    with closing(connect(settings)) as connection:
        connection.set_session(readonly=True, autocommit=True)
        check_ledger(connection)
        history.ledger_states(connection, settings)
        history.last_dispatchers(connection)
        history.quarantined(connection, settings)
        entries = history.entries(connection, settings, [1, 2, 3])
        history.events(connection, [entry["entry_id"] for entry in entries])
        history.control_row(connection, settings, 1)
        history.in_view(connection, settings, 1)
    with _dispatcher(settings) as control:
        sort_rows(control.waiting(10))
        control.backlog()


@contextmanager
def _dispatcher(settings: Settings) -> Iterator[PostgresControlPlane]:
    control = PostgresControlPlane(settings, "test")
    try:
        yield control
    finally:
        with suppress(ProcessManagerError):
            control.end()
