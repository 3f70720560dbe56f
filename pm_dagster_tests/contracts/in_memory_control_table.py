"""The fake control plane with its owner's side."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from pm_dagster.dispatch.model import EntryState
from pm_dagster.dispatch.ports import ControlPlane
from pm_dagster.dispatch.waiting_job import RawRow
from pm_dagster_tests.fakes.control_plane import InMemoryControlPlane, InMemoryDatabase, Row


class InMemoryControlTable:
    """See ``ControlTable``."""

    def __init__(self) -> None:
        self.database = InMemoryDatabase(time.time)
        self._ids = itertools.count(1)

    def add(
        self, *, job_id: int | None = 1001, previous: int | None = None, age: float = 0.0, status: str = "WAITING"
    ) -> int:
        """A row of the control table."""
        run_id = next(self._ids)
        parameters = {"RUN_ID": run_id, "CNTRT_ID": 7, "FILE_NAME": "orders.csv"}
        since = datetime.now(UTC) - timedelta(seconds=age)
        self.database.rows[run_id] = Row(RawRow(run_id, job_id, previous, parameters, since), status)
        return run_id

    def status(self, run_id: int) -> str:
        """What the control table says."""
        return self.database.rows[run_id].status

    def set_status(self, run_id: int, status: str) -> None:
        """Change the row."""
        self.database.rows[run_id].status = status

    def correct(self, run_id: int, job_id: int | None) -> None:
        """Give the row a job id, or take it away."""
        row = self.database.rows[run_id]
        row.raw = replace(row.raw, job_id=job_id)

    def rename(self, run_id: int, file_name: str) -> None:
        """Correct the file name of the row."""
        row = self.database.rows[run_id]
        row.raw = replace(row.raw, parameters={**row.raw.parameters, "FILE_NAME": file_name})

    def touch(self, run_id: int) -> None:
        """Write the row without changing what it asks for."""
        self.database.rows[run_id].message = "touched"

    def name_run(self, run_id: int, previous: int) -> None:
        """Give the row the Databricks run that is to be repaired."""
        row = self.database.rows[run_id]
        row.raw = replace(row.raw, previous_run_id=previous)

    def remove(self, run_id: int) -> None:
        """Delete the row."""
        del self.database.rows[run_id]

    @contextmanager
    def locked(self, run_id: int) -> Iterator[None]:
        """Hold the row."""
        self.database.rows[run_id].locked = True
        yield
        self.database.rows[run_id].locked = False

    def loosen_view(self) -> None:
        """Take letters of any case for waiting."""
        self.database.loose_view = True

    def dispatcher(self, *, actor: str = "test") -> ControlPlane:
        """A dispatcher of its own."""
        return InMemoryControlPlane(self.database, actor=actor)

    def die(self, control: ControlPlane) -> None:
        """End the dispatcher without a goodbye."""
        assert isinstance(control, InMemoryControlPlane)
        self.database.alive.discard(control._me)

    def stored(self, entry_id: int) -> tuple[EntryState, bool]:
        """State and ambiguity of an entry."""
        entry = self.database.ledger[entry_id].entry
        return entry.state, entry.ambiguous

    def pass_time(self, seconds: float) -> None:
        """Let waits run down."""
        for record in self.database.ledger.values():
            if record.not_before is not None:
                record.not_before -= timedelta(seconds=seconds)

    def leave(self) -> None:
        """Nothing to clean up."""
