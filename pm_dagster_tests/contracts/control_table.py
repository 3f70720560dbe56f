"""What a contract test needs beside the port: the owner's side of the control plane."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from pm_dagster.dispatch.model import EntryState
from pm_dagster.dispatch.ports import ControlPlane


class ControlTable(Protocol):
    """Rows as their owner sees them, and the dispatchers that work on them."""

    def add(
        self, *, job_id: int | None = 1001, previous: int | None = None, age: float = 0.0, status: str = "WAITING"
    ) -> int:
        """A row of the control table; ``age`` in seconds."""

    def status(self, run_id: int) -> str:
        """What the control table says."""

    def set_status(self, run_id: int, status: str) -> None:
        """Change the row as its owner or its own job would."""

    def correct(self, run_id: int, job_id: int | None) -> None:
        """Give the row a job id, or take it away."""

    def rename(self, run_id: int, file_name: str) -> None:
        """Correct the file name of the row."""

    def touch(self, run_id: int) -> None:
        """Write the row without changing what it asks for."""

    def name_run(self, run_id: int, previous: int) -> None:
        """Give the row the Databricks run that is to be repaired."""

    def remove(self, run_id: int) -> None:
        """Delete the row."""

    def locked(self, run_id: int) -> AbstractContextManager[None]:
        """Hold the row locked, as its owner does in a long transaction."""

    def loosen_view(self) -> None:
        """Let the view take letters of any case for waiting, which the table does not."""

    def dispatcher(self, *, actor: str = "test") -> ControlPlane:
        """A dispatcher of its own."""

    def die(self, control: ControlPlane) -> None:
        """End the dispatcher without a goodbye."""

    def stored(self, entry_id: int) -> tuple[EntryState, bool]:
        """State and ambiguity of an entry, as the ledger has them."""

    def pass_time(self, seconds: float) -> None:
        """Let waits recorded in the ledger run down."""

    def leave(self) -> None:
        """Clean up."""
