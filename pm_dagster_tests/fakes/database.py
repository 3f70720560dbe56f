"""What dispatchers in memory share: the control table and the ledger. ``control_plane`` has the port's rules."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from pm_dagster.dispatch.model import Entry, Outcome
from pm_dagster.dispatch.ports import Event
from pm_dagster.dispatch.waiting_job import RawRow


@dataclass
class Row:
    """A row of the control table. ``locked`` while its owner holds it; ``hidden`` from whoever wants to change it."""

    raw: RawRow
    status: str = "WAITING"
    databricks_run_id: int | None = None
    message: str = ""
    locked: bool = False
    hidden: bool = False


@dataclass
class Record:
    """A row of the ledger."""

    entry: Entry
    owner: int
    open: bool = True
    outcome: Outcome | None = None
    succeeded: bool = False
    accepted_run_id: int | None = None
    accepted_repair_id: int | None = None
    page_url: str | None = None
    reason: str = ""
    superseded: bool = False
    not_before: datetime | None = None
    events: list[Event] = field(default_factory=list)

    @property
    def rested(self) -> bool:
        """Whether its pause, if any, is over."""
        return self.not_before is None or self.not_before <= datetime.now(UTC)


@dataclass
class Registered:
    """A dispatcher that is known by name."""

    actor: str
    seen: float = field(default_factory=time.monotonic)
    left: bool = False


class InMemoryDatabase:
    """The control table and its ledger; what several dispatchers share.

    ``loose_view`` is a view that takes letters of any case for waiting, which the table does not. Without a ``clock``
    dispatchers share no budget.
    """

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self.loose_view = False
        self.rows: dict[object, Row] = {}
        self.ledger: dict[int, Record] = {}
        self.alive: set[int] = set()
        self.registered: dict[int, Registered] = {}
        self.numbers = itertools.count(1)
        self.clock = clock
        self.budget_lock = threading.Lock()
        self.budgets: dict[str, str] = {}

    def add(self, run_id: object, job_id: object = 7, previous_run_id: object = None) -> None:
        """Put a WAITING row into the control table."""
        since = datetime.now(UTC) - timedelta(seconds=60)
        self.rows[run_id] = Row(RawRow(run_id, job_id, previous_run_id, {"RUN_ID": str(run_id)}, since))

    def statuses(self) -> Mapping[object, str]:
        """The status of each row."""
        return {run_id: row.status for run_id, row in self.rows.items()}

    def newest(self, run_id: object) -> Record | None:
        """The newest generation of a row's entry."""
        return next((r for r in reversed(self.ledger.values()) if r.entry.run_id == run_id), None)

    def note(self, entry: Entry) -> str:
        """What became of the generation before, where the row was corrected in between."""
        records = (r for r in self.ledger.values() if r.superseded and r.entry.run_id == entry.run_id)
        return next((r.reason for r in records if r.entry.generation == entry.generation - 1), "")

    def earlier_runs(self, entry: Entry) -> tuple[int, ...]:
        """The runs of a row's earlier generations."""
        others = (r for r in self.ledger.values() if r.entry.run_id == entry.run_id)
        earlier = [r.accepted_run_id for r in others if r.entry.generation < entry.generation]
        return tuple(run_id for run_id in earlier if run_id is not None)
