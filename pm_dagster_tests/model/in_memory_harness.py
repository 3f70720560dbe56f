"""The harness of the fakes: fast, and with a time of its own.

It adds no rule of the real services: what the fakes must do like them is in the contract suites.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from pm_dagster.config.settings import Settings
from pm_dagster.dispatch.model import Call, EntryState, RunSnapshot
from pm_dagster.dispatch.ports import ControlPlane
from pm_dagster.dispatch.waiting_job import RawRow
from pm_dagster.errors import (
    AuthenticationFailed,
    ForeignAnswer,
    ProcessManagerError,
    Refused,
    Throttled,
    WorkspaceUnavailable,
)
from pm_dagster_tests.fakes.control_plane import InMemoryControlPlane, InMemoryDatabase, Row
from pm_dagster_tests.fakes.runs import Fault, InMemoryRuns, Run
from pm_dagster_tests.model.harness import FILE_NAME, JOBS, EntryNow, RowNow, RunNow

SECRET = "dapi-s3cret-0123"
_ENDS = {
    "fail": ("INTERNAL_ERROR", "FAILED"),
    "succeed": ("TERMINATED", "SUCCESS"),
    "cancel": ("TERMINATED", "CANCELED"),
    "active": ("RUNNING", None),
    "skipped": ("SKIPPED", None),
}
FAILED = RunSnapshot(0, JOBS[0], *_ENDS["fail"])
_OVER = ("INTERNAL_ERROR", "TERMINATED", "SKIPPED")


class LaggingRuns(InMemoryRuns):
    """A workspace that may not yet show a repair, and whose error texts hold a secret until they are scrubbed."""

    def __init__(self) -> None:
        super().__init__(JOBS)
        self.lagging_reads = 0
        self.shown: dict[int, tuple[int, ...]] = {}

    def start(self, job_id: int, parameters: Mapping[str, str], idempotency_token: str) -> int:
        """run-now; the token of a deleted run stays taken."""
        known = self._tokens.get(idempotency_token)
        if known is not None and known not in self.runs:
            self._begin(Call.RUN_NOW, job_id)
            raise Refused(f"Run {known} of this idempotency token was deleted.", status=400)
        return super().start(job_id, parameters, idempotency_token)

    def look_up(self, run_id: int) -> RunSnapshot:
        """runs/get."""
        now = super().look_up(run_id)
        if self.lagging_reads > 0:
            self.lagging_reads -= 1
            shown = self.shown.get(run_id, now.repair_ids)
            # What was repaired later had failed before.
            return replace(FAILED, run_id=run_id, repair_ids=shown) if len(now.repair_ids) > len(shown) else now
        return now

    def scrub(self, text: str) -> str:
        """Without the secret."""
        return text.replace(SECRET, "***")


class InMemoryHarness:
    """See ``Harness``."""

    def __init__(self) -> None:
        self.secret = SECRET
        self.database = InMemoryDatabase()
        self.workspace = LaggingRuns()
        self._ids = itertools.count(1)

    def rows(self) -> dict[int, RowNow]:
        """The control table."""
        return {int(str(key)): _row(row) for key, row in self.database.rows.items()}

    def ledger(self) -> list[EntryNow]:
        """The ledger."""
        return [
            EntryNow(
                record.entry.entry_id,
                record.entry.run_id,
                record.entry.generation,
                record.entry.state.value,
                record.open,
                record.entry.branch.value,
                record.accepted_run_id,
                record.reason,
                record.owner,
            )
            for record in self.database.ledger.values()
        ]

    def texts(self) -> list[str]:
        """Reasons, events and messages."""
        records = self.database.ledger.values()
        told = [event.detail for record in records for event in record.events]
        return told + [record.reason for record in records] + [row.message for row in self.database.rows.values()]

    def runs(self) -> dict[int, RunNow]:
        """The workspace's runs."""
        return {run_id: _run(run) for run_id, run in self.workspace.runs.items()}

    def add_row(self, job_id: int | None, previous: int | None) -> int:
        """A row that waits."""
        row = next(self._ids)
        parameters = {"RUN_ID": row, "FILE_NAME": FILE_NAME}
        self.database.rows[row] = Row(RawRow(row, job_id, previous, parameters, datetime.now(UTC)))
        return row

    def set_row(self, row: int, status: str, previous: int | None) -> None:
        """Change status and run id."""
        found = self.database.rows[row]
        found.status, found.raw = status, replace(found.raw, previous_run_id=previous)

    def set_job(self, row: int, job_id: int) -> None:
        """Change the job."""
        found = self.database.rows[row]
        found.raw = replace(found.raw, job_id=job_id)

    def remove_row(self, row: int) -> None:
        """Delete a row."""
        del self.database.rows[row]

    def redrive(self, row: int) -> None:
        """As ``pm_dagster.ledger.redrive``."""
        record, found = self.database.newest(row), self.database.rows.get(row)
        refused = record is not None and record.entry.state is EntryState.QUARANTINED
        if refused and found is not None and found.status == "FAILED":
            found.status = "WAITING"

    def past_run(self, outcome: str, repairs: int) -> int:
        """A run that was there before."""
        run_id = self.workspace.failed_run(JOBS[0], repairs)
        run = self.workspace.runs[run_id]
        run.life_cycle, run.result = _ENDS[outcome]
        return run_id

    def finish(self, run_id: int, outcome: str) -> None:
        """End a run."""
        run = self.workspace.runs[run_id]
        run.life_cycle, run.result = _ENDS[outcome]

    def delete(self, run_id: int) -> None:
        """Let a run vanish."""
        del self.workspace.runs[run_id]

    def start_elsewhere(self, row: int) -> None:
        """By hand, with the row's parameters."""
        parameters = {"RUN_ID": str(row), "FILE_NAME": FILE_NAME}
        job_id = self.database.rows[row].raw.job_id
        if job_id in self.workspace.jobs:
            self.workspace.runs[next(self.workspace._ids)] = Run(int(str(job_id)), parameters, "RUNNING")

    def repair_elsewhere(self, run_id: int) -> None:
        """By hand."""
        run = self.workspace.runs[run_id]
        run.repairs.append(next(self.workspace._ids))
        run.life_cycle, run.result = "RUNNING", None

    def set_job_exists(self, job_id: int, *, exists: bool) -> None:
        """Delete a job, or create it."""
        (self.workspace.jobs.add if exists else self.workspace.jobs.discard)(job_id)

    def lag(self, reads: int) -> None:
        """What is in the histories now is what is shown."""
        self.workspace.lagging_reads = reads
        self.workspace.shown = {run_id: tuple(run.repairs) for run_id, run in self.workspace.runs.items()}

    def arm(self, call: Call, kind: str, *, after: bool, good: int) -> None:
        """Let a call go wrong."""
        text = self.workspace.scrub(f"what the workspace says, with {SECRET} in it")
        lost = kind in ("lost", "foreign")
        faults = self.workspace.faults.setdefault(call, [])
        faults += [*[Fault(None)] * good, Fault(_error(kind, text), after_effect=after and lost)]

    def calm(self) -> None:
        """Only good days."""
        self.workspace.faults.clear()
        self.workspace.lagging_reads = 0

    def pass_time(self, seconds: float) -> None:
        """All that is remembered grows older."""
        gone = timedelta(seconds=seconds)
        for record in self.database.ledger.values():
            record.not_before = record.not_before and record.not_before - gone
            began = record.entry.intent_at
            record.entry = replace(record.entry, intent_at=began and began - gone)
        for run in self.workspace.runs.values():
            run.started -= gone

    def control(self, settings: Settings) -> ControlPlane:
        """A dispatcher's control plane."""
        return InMemoryControlPlane(self.database, settings)

    def identity(self, control: ControlPlane) -> int:
        """Its number."""
        assert isinstance(control, InMemoryControlPlane)
        return control._me

    def jobs_api(self) -> LaggingRuns:
        """The workspace."""
        return self.workspace

    def die(self, control: ControlPlane) -> None:
        """Gone."""
        self.lose(control)

    def lose(self, control: ControlPlane) -> None:
        """Taken for dead; it lives again with its next write."""
        assert isinstance(control, InMemoryControlPlane)
        self.database.alive.discard(control._me)

    def leave(self) -> None:
        """Nothing to clean up."""


def _row(row: Row) -> RowNow:
    previous = row.raw.previous_run_id
    return RowNow(row.status, row.raw.job_id, None if previous is None else int(str(previous)), row.message)


def _run(run: Run) -> RunNow:
    active = run.life_cycle not in _OVER
    return RunNow(run.job_id, run.parameters, 1 + len(run.repairs), active, run.result == "SUCCESS")


def _error(kind: str, text: str) -> ProcessManagerError:
    errors: dict[str, ProcessManagerError] = {
        "lost": WorkspaceUnavailable(text, status=502),
        "foreign": ForeignAnswer(text, status=404),
        "unsent": WorkspaceUnavailable(text, maybe_applied=False),
        "throttled": Throttled(text, retry_after=3.0),
        "long": Throttled(text, retry_after=300.0),
        "credentials": AuthenticationFailed(text, status=401),
        "busy": Refused(text, status=409),
        "refused": Refused(text, status=403),
    }
    return errors[kind]
