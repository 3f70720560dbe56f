"""What the machine does to a control table and a workspace and reads off them, the same for fakes and real servers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from pm_dagster.config.settings import Settings
from pm_dagster.dispatch.model import Call
from pm_dagster.dispatch.ports import ControlPlane, DatabricksRuns

JOBS = (7, 8)
UNKNOWN_JOB = 99
#: Hard to get into SQL and back whole.
FILE_NAME = 'o\'rders; %s {0} "x".csv'
SETTINGS = replace(
    Settings(),
    rate_run_now=0.0,
    rate_repair=0.0,
    rate_get_run=0.0,
    concurrency=1,
    call_backoff_seconds=1.0,
    settle_seconds=30.0,
    deadline_seconds=60.0,
    max_attempts=2,
)


@dataclass(frozen=True)
class RowNow:
    """A row of the control table."""

    status: str
    job_id: object
    previous_run_id: int | None
    message: str


@dataclass(frozen=True)
class RunNow:
    """A run of the workspace: how many attempts it had, and how the last one stands."""

    job_id: int
    parameters: Mapping[str, str]
    attempts: int
    active: bool
    succeeded: bool


@dataclass(frozen=True)
class EntryNow:
    """An entry of the ledger; ``owner`` is the dispatcher that may write it."""

    entry_id: int
    row: int
    generation: int
    state: str
    open: bool
    branch: str
    accepted_run_id: int | None
    reason: str
    owner: int | None


class Harness(Protocol):
    """One control plane and one workspace. Runs and rows are named by their ids.

    ``secret`` stands in the error texts of the workspace and must be found nowhere.
    """

    secret: str

    def rows(self) -> dict[int, RowNow]:
        """The control table."""

    def ledger(self) -> list[EntryNow]:
        """The ledger, oldest first."""

    def texts(self) -> list[str]:
        """All that the ledger and the control table say in words."""

    def runs(self) -> dict[int, RunNow]:
        """The workspace's runs."""

    def add_row(self, job_id: int | None, previous: int | None) -> int:
        """A row that waits."""

    def set_row(self, row: int, status: str, previous: int | None) -> None:
        """Change status and run id, as the owner or the row's own job does."""

    def set_job(self, row: int, job_id: int) -> None:
        """Change the job of a row."""

    def remove_row(self, row: int) -> None:
        """Delete a row."""

    def redrive(self, row: int) -> None:
        """What the operator's command does."""

    def past_run(self, outcome: str, repairs: int) -> int:
        """A run that was there before: fail, succeed, active or skipped."""

    def finish(self, run_id: int, outcome: str) -> None:
        """End an active run: succeed, fail or cancel."""

    def delete(self, run_id: int) -> None:
        """Let a run vanish."""

    def start_elsewhere(self, row: int) -> None:
        """Somebody starts a run with a row's parameters by hand."""

    def repair_elsewhere(self, run_id: int) -> None:
        """Somebody repairs a run by hand."""

    def set_job_exists(self, job_id: int, *, exists: bool) -> None:
        """Delete a job, or create it again."""

    def lag(self, reads: int) -> None:
        """For so many reads a run shows no repair that is newer than now."""

    def arm(self, call: Call, kind: str, *, after: bool, good: int) -> None:
        """Let a call go wrong after so many good ones; see ``environment_rules.KIND`` for how."""

    def calm(self) -> None:
        """No fault and no lag from here on."""

    def pass_time(self, seconds: float) -> None:
        """Let waits run down."""

    def control(self, settings: Settings) -> ControlPlane:
        """A dispatcher's control plane."""

    def identity(self, control: ControlPlane) -> int | None:
        """The number under which a dispatcher owns entries, None before it owned any."""

    def jobs_api(self) -> DatabricksRuns:
        """A dispatcher's workspace."""

    def die(self, control: ControlPlane) -> None:
        """The dispatcher's process ends without a goodbye."""

    def lose(self, control: ControlPlane) -> None:
        """The dispatcher is taken for dead, but is not."""

    def leave(self) -> None:
        """Clean up."""
