"""The ports of a stepped dispatcher: they stop it before each write, and tell the oracle what it does."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Protocol

from pm_dagster.dispatch.model import Call, Entry, KnownRun, MorePages, RunSnapshot
from pm_dagster.dispatch.ports import (
    Backlog,
    BudgetChange,
    Change,
    Closed,
    ControlPlane,
    DatabricksRuns,
    SignOfLife,
    Written,
)
from pm_dagster.dispatch.untakeable import Untakeable
from pm_dagster.dispatch.waiting_job import RawRow, RefusedRow, WaitingJob
from pm_dagster.errors import Refused, WorkspaceUnavailable
from pm_dagster_tests.model.stepped_dispatcher import Killed, SteppedDispatcher


class Witness(Protocol):
    """Who is told, in the dispatcher's thread, what a dispatcher does."""

    def asked(self, moment: float) -> None:
        """A call or an intent begins; ``moment`` is in seconds since the dispatch began."""

    def claimed(self, entries: Sequence[Entry]) -> None:
        """Rows were taken."""

    def rescued(self, entries: Sequence[Entry]) -> None:
        """What somebody left was rescued."""

    def granted(self, entry: Entry, call: Call) -> None:
        """A call for an entry may be made now."""

    def before_call(self) -> None:
        """A call that may start something begins."""

    def after_call(self, row: int, generation: int, call: Call, *, lost: bool) -> None:
        """It ended; ``lost`` when its answer was lost."""

    def refused(self, *, row: int | None = None, run_id: int | None = None) -> None:
        """The Jobs API said no to a call for this row, or about this run."""


class SteppingControl:
    """A control plane that stops its dispatcher before each write, and after an intent, when the call is on its way."""

    def __init__(self, inner: ControlPlane, dispatcher: SteppedDispatcher, witness: Witness) -> None:
        self._inner = inner
        self._dispatcher = dispatcher
        self._witness = witness
        #: The generation of each row that this dispatcher took, as far as it knows.
        self.generations: dict[int, int] = {}

    def backlog(self) -> Backlog:
        """As it is."""
        return self._inner.backlog()

    def has_work(self, *, ours: bool = False) -> bool:
        """As ``inner`` does."""
        return self._inner.has_work(ours=ours)

    def waiting(self, limit: int, seen: Collection[int] | None = None) -> list[RawRow]:
        """Stops before."""
        self._dispatcher.stop_at("before waiting")
        return self._inner.waiting(limit, seen)

    def untakeable(self, limit: int, run_ids: Collection[int] | None = None) -> list[Untakeable]:
        """As it is."""
        return self._inner.untakeable(limit, run_ids)

    def held(self, run_ids: Collection[int]) -> set[int]:
        """As it is."""
        return self._inner.held(run_ids)

    def shown(self, run_ids: Collection[int]) -> list[RawRow]:
        """As it is."""
        return self._inner.shown(run_ids)

    def share_budget(self, workspace: str, change: BudgetChange) -> bool:  # noqa: ARG002 of the port
        """Nothing is shared: the clock of the model is not the database's."""
        return False

    def claim(self, jobs: Sequence[WaitingJob]) -> list[Entry]:
        """Stops before."""
        self._dispatcher.stop_at("before claim")
        entries = self._inner.claim(jobs)
        self._witness.claimed(entries)
        return self._took(entries)

    def refuse(self, rows: Sequence[RefusedRow]) -> list[RefusedRow]:
        """Stops before."""
        self._dispatcher.stop_at("before refuse")
        return self._inner.refuse(rows)

    def rescue(self, limit: int) -> list[Entry]:
        """Stops before."""
        self._dispatcher.stop_at("before rescue")
        return self._rescued(self._inner.rescue(limit))

    def resume(self, entry_ids: Collection[int]) -> list[Entry]:
        """Stops before."""
        self._dispatcher.stop_at("before resume")
        return self._rescued(self._inner.resume(entry_ids))

    def intend(self, entries: Sequence[Entry]) -> set[int]:
        """Stops before and after."""
        return self.record_and_intend([], entries).granted

    def record(self, changes: Sequence[Change]) -> set[int]:
        """Stops before."""
        return self.record_and_intend(changes, []).passed_over

    def record_and_intend(self, changes: Sequence[Change], entries: Sequence[Entry]) -> Written:
        """Stops before what it does, and after an intent."""
        if entries:
            self._witness.asked(self._dispatcher.clock.now - self._dispatcher.began)
        if changes:
            self._dispatcher.stop_at("before record")
        if entries:
            self._dispatcher.stop_at("before intend")
        written = self._inner.record_and_intend(changes, entries)
        for entry in entries:
            if entry.entry_id in written.granted:
                self._witness.granted(entry, Call.RUN_NOW if entry.starts_new_run else Call.REPAIR)
        if entries:
            self._dispatcher.stop_at("after intend")
        return written

    def close(self, entry_ids: Collection[int], go_on: Callable[[], bool] = lambda: True) -> list[Closed]:
        """Stops before."""
        self._dispatcher.stop_at("before close")
        return self._inner.close(entry_ids, go_on)

    def known_runs(self, databricks_run_ids: Collection[int]) -> list[KnownRun]:
        """As it is."""
        return self._inner.known_runs(databricks_run_ids)

    def register(self) -> None:
        """As it is, without a stop."""
        self._inner.register()

    def signs_of_life(self, actors: Collection[str]) -> Mapping[str, SignOfLife]:
        """As it is."""
        return self._inner.signs_of_life(actors)

    def heartbeat(self) -> None:
        """As it is, without a stop."""
        if self._dispatcher.killed:
            raise Killed("heartbeat")
        self._inner.heartbeat()

    def end(self) -> None:
        """Stops before."""
        self._dispatcher.stop_at("before end")
        self._inner.end()

    def _rescued(self, entries: list[Entry]) -> list[Entry]:
        self._witness.rescued(entries)
        return self._took(entries)

    def _took(self, entries: list[Entry]) -> list[Entry]:
        self.generations.update({entry.run_id: entry.generation for entry in entries})
        return entries


class WatchedRuns:
    """The Jobs API as one dispatcher uses it, each call a second long and told to the witness."""

    def __init__(
        self, inner: DatabricksRuns, dispatcher: SteppedDispatcher, control: SteppingControl, witness: Witness
    ) -> None:
        self._inner = inner
        self._dispatcher = dispatcher
        self._control = control
        self._witness = witness

    def start(self, job_id: int, parameters: Mapping[str, str], idempotency_token: str) -> int:
        """run-now."""
        return self._effective(
            Call.RUN_NOW, parameters, lambda: self._inner.start(job_id, parameters, idempotency_token)
        )

    def look_up(self, run_id: int) -> RunSnapshot | MorePages[RunSnapshot]:
        """runs/get."""
        self._witness.asked(self._dispatcher.clock.now - self._dispatcher.began)
        self._dispatcher.clock.now += 1.0
        try:
            return self._inner.look_up(run_id)
        except Refused:
            self._witness.refused(run_id=run_id)
            raise

    def repair(self, run_id: int, parameters: Mapping[str, str], latest_repair_id: int | None) -> int:
        """runs/repair."""
        return self._effective(
            Call.REPAIR, parameters, lambda: self._inner.repair(run_id, parameters, latest_repair_id)
        )

    def find_started(
        self, job_id: int, since: datetime, parameters: Mapping[str, str]
    ) -> list[int] | MorePages[list[int]]:
        """runs/list."""
        self._dispatcher.clock.now += 1.0
        return self._inner.find_started(job_id, since, parameters)

    @property
    def workspace(self) -> str:
        """As it is."""
        return self._inner.workspace

    def page_url(self, job_id: int, run_id: int) -> str:
        """As it is."""
        return self._inner.page_url(job_id, run_id)

    def scrub(self, text: str) -> str:
        """As it is."""
        return self._inner.scrub(text)

    def _effective(self, kind: Call, parameters: Mapping[str, str], call: Callable[[], int]) -> int:
        self._dispatcher.clock.now += 1.0
        self._witness.before_call()
        row = int(parameters["RUN_ID"])
        lost = False
        try:
            return call()
        except WorkspaceUnavailable as error:
            lost = error.maybe_applied
            raise
        except Refused:
            self._witness.refused(row=row)
            raise
        finally:
            self._witness.after_call(row, self._control.generations.get(row, 0), kind, lost=lost)
