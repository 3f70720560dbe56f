"""What can be decided for a row: the next call, or how it leaves the dispatch.

Put here: the decisions as values. Keep out: which is right when (``decisions``), and carrying it out (``sending``).
"""

from __future__ import annotations

from dataclasses import dataclass

from pm_dagster.errors import ProcessManagerError


@dataclass(frozen=True)
class StartRun:
    """Send run-now; ``reason`` says why a repair row gets a fresh run, empty for a new row."""

    reason: str = ""


@dataclass(frozen=True)
class RepairRun:
    """Send a repair that names this latest repair id."""

    latest_repair_id: int | None


@dataclass(frozen=True)
class LookUp:
    """Read the run and its history, after ``delay`` seconds."""

    delay: float = 0.0


@dataclass(frozen=True)
class FindRun:
    """Search the job's runs for the one that a lost answer may have started."""


@dataclass(frozen=True)
class Again:
    """Make the same call again after ``delay`` seconds."""

    delay: float


@dataclass(frozen=True)
class Accept:
    """The workspace took the call: the row's work is a new run, or a repair of its run."""

    run_id: int
    repair_id: int | None
    reason: str


@dataclass(frozen=True)
class Adopt:
    """The work is under way or done without us: take it as the row's."""

    run_id: int
    repair_id: int | None
    reason: str
    succeeded: bool = False


@dataclass(frozen=True)
class Defer:
    """Leave the row for a later dispatch. ``counts`` when it uses up one of the row's attempts."""

    reason: str
    seconds: float
    counts: bool = False


@dataclass(frozen=True)
class Quarantine:
    """Refuse the row for good. ``rule`` says which rule makes it final; empty while that is to be found out."""

    reason: str
    rule: str = ""


@dataclass(frozen=True)
class Withdraw:
    """Close the entry without a run: nobody asks for the work any more."""

    reason: str


@dataclass(frozen=True)
class Supersede:
    """Close the entry without writing the control table: its row was corrected, and is taken as it is now.

    The run, and its repair, are what the former call had started, if anything.
    """

    reason: str
    run_id: int | None = None
    repair_id: int | None = None


@dataclass(frozen=True)
class Stop:
    """Stop the dispatch: the fault is not this row's."""

    error: ProcessManagerError


Decision = (
    StartRun | RepairRun | LookUp | FindRun | Again | Accept | Adopt | Defer | Quarantine | Withdraw | Supersede | Stop
)
