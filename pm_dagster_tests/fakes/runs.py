"""The DatabricksRuns port in memory: idempotency tokens, repair history, and faults before or after the effect."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from pm_dagster.config.settings import Settings
from pm_dagster.dispatch.model import Call, RunSnapshot
from pm_dagster.errors import ProcessManagerError, Refused

_BAD_REQUEST, _NOT_FOUND = 400, 404
_CLOCKS_DIFFER = timedelta(seconds=60)


@dataclass
class Run:
    """A run of the workspace."""

    job_id: int
    parameters: dict[str, str]
    life_cycle: str = "PENDING"
    result: str | None = None
    repairs: list[int] = field(default_factory=list)
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    page_url: str | None = None


@dataclass
class Fault:
    """The error that the next call raises, None for none; ``after_effect`` when the call is carried out first."""

    error: ProcessManagerError | None
    after_effect: bool = False


class InMemoryRuns:
    """See ``pm_dagster.dispatch.ports.DatabricksRuns``. Thread-safe. ``calls`` is the log of what was asked."""

    def __init__(self, jobs: tuple[int, ...] = (7,)) -> None:
        self.jobs = set(jobs)
        self.runs: dict[int, Run] = {}
        self.calls: list[tuple[Call, int]] = []
        self.faults: dict[Call, list[Fault]] = {}
        self._tokens: dict[str, int] = {}
        self._ids = itertools.count(2**53 + 1)
        self._lock = threading.RLock()

    def failed_run(self, job_id: int = 7, repairs: int = 0) -> int:
        """A run that failed, after so many repairs."""
        run_id = next(self._ids)
        history = [next(self._ids) for _ in range(repairs)]
        self.runs[run_id] = Run(job_id, {}, "INTERNAL_ERROR", "FAILED", history)
        return run_id

    def refuse_after(self, good: int, call: Call, error: ProcessManagerError) -> None:
        """Let some calls of a kind pass, and fail the one after them."""
        self.faults[call] = [*[Fault(None) for _ in range(good)], Fault(error)]

    def count(self, call: Call) -> int:
        """How often a call was made."""
        return sum(made is call for made, _ in self.calls)

    def start(self, job_id: int, parameters: Mapping[str, str], idempotency_token: str) -> int:
        """run-now."""
        with self._lock:
            fault = self._begin(Call.RUN_NOW, job_id)
            if job_id not in self.jobs:
                raise Refused(f"Job {job_id} does not exist.", status=_BAD_REQUEST, gone=True, job_absent=True)
            run_id = self._tokens.setdefault(idempotency_token, next(self._ids))
            self.runs.setdefault(run_id, Run(job_id, dict(parameters)))
            _end(fault)
            return run_id

    def look_up(self, run_id: int) -> RunSnapshot:
        """runs/get."""
        with self._lock:
            self._begin(Call.GET_RUN, run_id)
            run = self._run(run_id)
            history, page = tuple(run.repairs), run.page_url
            return RunSnapshot(run_id, run.job_id, run.life_cycle, run.result, repair_ids=history, page_url=page)

    def repair(self, run_id: int, parameters: Mapping[str, str], latest_repair_id: int | None) -> int:
        """runs/repair."""
        with self._lock:
            fault = self._begin(Call.REPAIR, run_id)
            run = self._run(run_id)
            latest = run.repairs[-1] if run.repairs else None
            if run.result is None or latest_repair_id != latest:
                raise Refused("The run is active, or has a newer repair.", status=_BAD_REQUEST)
            run.repairs.append(next(self._ids))
            run.life_cycle, run.result = "RUNNING", None
            run.parameters |= parameters
            _end(fault)
            return run.repairs[-1]

    def find_started(self, job_id: int, since: datetime, parameters: Mapping[str, str]) -> list[int]:
        """runs/list, newest first, from a minute before ``since``, as clocks differ."""
        with self._lock:
            self._begin(Call.LIST_RUNS, job_id)
            wanted = dict(parameters)
            early = since - _CLOCKS_DIFFER
            fits = [n for n, r in reversed(self.runs.items()) if r.job_id == job_id and r.started >= early]
            return [run_id for run_id in fits if self.runs[run_id].parameters == wanted]

    @property
    def workspace(self) -> str:
        """The host."""
        return "workspace.example"

    def page_url(self, job_id: int, run_id: int) -> str:
        """The link."""
        return f"https://workspace.example/#job/{job_id}/run/{run_id}"

    def scrub(self, text: str) -> str:
        """Nothing is secret here."""
        return text

    def _begin(self, call: Call, number: int) -> Fault | None:
        self.calls.append((call, number))
        waiting = self.faults.get(call)
        fault = waiting.pop(0) if waiting else None
        if fault is not None and fault.error is not None and not fault.after_effect:
            raise fault.error
        return fault

    def _run(self, run_id: int) -> Run:
        if run_id not in self.runs:
            raise Refused(f"Run {run_id} does not exist.", status=_NOT_FOUND, gone=True)
        return self.runs[run_id]


def _end(fault: Fault | None) -> None:
    if fault is not None and fault.error is not None:
        raise fault.error


@dataclass
class InMemoryWorkspace:
    """A workspace to sign in to."""

    jobs_api: InMemoryRuns

    def runs(self, settings: Settings) -> InMemoryRuns:
        """The Jobs API."""
        del settings
        return self.jobs_api
