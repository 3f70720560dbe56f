"""``pm plan``: the steps of a dispatch over ports that write nothing and start nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property

from pm_dagster.config.settings import Settings
from pm_dagster.dispatch.batches import Claimed
from pm_dagster.dispatch.model import (
    Decision,
    Entry,
    EntryState,
    KnownRun,
    MorePages,
    Outcome,
    RepairRun,
    RowOutcome,
    RunSnapshot,
    StartRun,
)
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
from pm_dagster.dispatch.service import Dispatch
from pm_dagster.dispatch.untakeable import Untakeable
from pm_dagster.dispatch.waiting_job import RawRow, RefusedRow, WaitingJob, row_key, sort_rows
from pm_dagster.errors import ProcessManagerError, WorkspaceUnavailable

#: A person waits for the plan: it takes at most so long, and asks the workspace at most so often for one run.
_LONGEST_SECONDS = 60.0
_MOST_TRIES = 3
_WORDS = {
    Outcome.ACCEPTED: "start",
    Outcome.ADOPTED: "adopt",
    Outcome.DEFERRED: "defer",
    Outcome.QUARANTINED: "refuse",
    Outcome.WITHDRAWN: "withdraw",
}


@dataclass(frozen=True)
class Planned:
    """One line of the plan.

    Attributes:
        run_id: The control plane's id of the row; None when it has none that can be read.
        branch: ``new`` or ``repair``.
        job_id: The Databricks job; None when the row is refused.
        would: What a dispatch would do now: start, repair, adopt, defer, refuse, withdraw or look up.
        why: The reason, for people.
    """

    run_id: int | None
    branch: str
    job_id: int | None
    would: str
    why: str


@dataclass(frozen=True)
class OpenEntry:
    """What the ledger knows of an entry that a claim would take up again."""

    generation: int = 1
    attempts: int = 0
    ambiguous: bool = False


#: Reads the open entries of the rows with these run ids, by run id.
OpenEntries = Callable[[Sequence[int]], Mapping[int, OpenEntry]]


def plan(
    control: ControlPlane,
    open_entries: OpenEntries,
    connect: Callable[[], DatabricksRuns],
    settings: Settings,
    limit: int,
) -> list[Planned]:
    """The rows that a dispatch would take or refuse, in its order.

    Args:
        control: The control table and the ledger; they are only read.
        open_entries: Reads what the ledger knows of rows that a dispatch had before.
        connect: Signs in to the workspace; called when a run has to be looked up.
        settings: Those of the dispatch. The plan looks up with fewer tries and for a minute at most.
        limit: The most rows that the dispatch would take.

    Returns:
        A line for each row. A row whose run got no answer says so.

    Raises:
        ProcessManagerError: What a dispatch would raise before it sends anything.
    """
    hurried = replace(
        settings,
        deadline_seconds=min(settings.deadline_seconds, _LONGEST_SECONDS),
        call_tries=min(settings.call_tries, _MOST_TRIES),
    )
    runs = ReadOnlyRuns(connect)
    dispatch = Dispatch(ReadOnlyControlPlane(control, open_entries), runs, hurried)
    claimed = dispatch.claim(dispatch.read(limit), limit)
    if claimed.repair:
        runs.connect()
    failure = None
    try:
        dispatch.look_up_repairs(claimed.new + claimed.repair)
    except WorkspaceUnavailable as error:
        failure = error
    calls = {work.entry.entry_id: work.step for work in dispatch.progress.prepared}
    return _lines(claimed, {**calls, **dispatch.progress.outcomes}, failure)


def _lines(
    claimed: Claimed, decided: Mapping[int, Decision | RowOutcome], failure: ProcessManagerError | None
) -> list[Planned]:
    places = {row_key(row): place for place, row in reversed(list(enumerate(claimed.rows)))}
    without = {id(row): place for place, row in enumerate(claimed.rows)}
    lines = [
        (without.get(id(row.row), 0), Planned(row.run_id, row.branch.value, None, "refuse", row.reason))
        for row in claimed.refused
    ]
    for entry in claimed.new + claimed.repair:
        would, why = _words(entry, decided.get(entry.entry_id), failure)
        lines.append((places.get(entry.run_id, 0), Planned(entry.run_id, entry.branch.value, entry.job_id, would, why)))
    return [line for _, line in sorted(lines, key=lambda placed: placed[0])]


def _words(entry: Entry, decided: Decision | RowOutcome | None, failure: ProcessManagerError | None) -> tuple[str, str]:
    if isinstance(decided, StartRun):
        return "start", decided.reason or "never had a Databricks run"
    if isinstance(decided, RepairRun):
        last = decided.latest_repair_id
        after = "; it was never repaired before" if last is None else f" after repair {last}"
        return "repair", f"run {entry.previous_run_id} can be repaired{after}"
    if isinstance(decided, RowOutcome):
        if decided.outcome is Outcome.DEFERRED and not decided.counts_as_attempt:
            return "look up", f"no answer: {decided.reason}"
        return _WORDS[decided.outcome], decided.reason
    return "look up", f"no answer: {failure or 'not asked in the time that a plan may take'}"


class ReadOnlyControlPlane:
    """A control plane that reads as ``inner`` does, claims in memory, and writes nothing."""

    def __init__(self, inner: ControlPlane, open_entries: OpenEntries) -> None:
        self._inner = inner
        self._open_entries = open_entries

    def backlog(self) -> Backlog:
        """As ``inner`` does."""
        return self._inner.backlog()

    def waiting(self, limit: int, seen: Collection[int] | None = None) -> list[RawRow]:
        """As ``inner`` does."""
        return self._inner.waiting(limit, seen)

    def has_work(self, *, ours: bool = False) -> bool:
        """As ``inner`` does."""
        return self._inner.has_work(ours=ours)

    def untakeable(self, limit: int, run_ids: Collection[int] | None = None) -> list[Untakeable]:
        """As ``inner`` does."""
        return self._inner.untakeable(limit, run_ids)

    def held(self, run_ids: Collection[int]) -> set[int]:
        """As ``inner`` does."""
        return self._inner.held(run_ids)

    def shown(self, run_ids: Collection[int]) -> list[RawRow]:
        """As ``inner`` does."""
        return self._inner.shown(run_ids)

    def claim(self, jobs: Sequence[WaitingJob]) -> list[Entry]:
        """The entries that a claim would make, under the rows' own numbers."""
        run_ids = [job.run_id for job in jobs]
        stuck = {row.run_id for row in self._inner.untakeable(len(run_ids), run_ids)} if run_ids else set()
        current, _ = sort_rows(self._inner.shown(run_ids)) if run_ids else ([], [])
        known = self._open_entries(run_ids)
        return [_entry(job, known.get(job.run_id, OpenEntry())) for job in current if job.run_id not in stuck]

    def refuse(self, rows: Sequence[RefusedRow]) -> list[RefusedRow]:
        """Those that would be refused."""
        run_ids = [row.run_id for row in rows if row.run_id is not None]
        return sort_rows(self._inner.shown(run_ids))[1] if run_ids else []

    def rescue(self, limit: int) -> list[Entry]:  # noqa: ARG002 of the port
        """Nothing: the plan only counts what a dead dispatcher left."""
        return []

    def share_budget(self, workspace: str, change: BudgetChange) -> bool:  # noqa: ARG002 of the port
        """Nothing is written: a plan paces its look-ups by itself."""
        return False

    def resume(self, entry_ids: Collection[int]) -> list[Entry]:  # noqa: ARG002 of the port
        """Nothing."""
        return []

    def intend(self, entries: Sequence[Entry]) -> set[int]:  # noqa: ARG002 of the port
        """Nothing may be sent."""
        return set()

    def known_runs(self, databricks_run_ids: Collection[int]) -> list[KnownRun]:
        """As ``inner`` does."""
        return self._inner.known_runs(databricks_run_ids)

    def record(self, changes: Sequence[Change]) -> set[int]:  # noqa: ARG002 of the port
        """Nothing is written."""
        return set()

    def record_and_intend(self, changes: Sequence[Change], entries: Sequence[Entry]) -> Written:  # noqa: ARG002 of the port
        """Nothing is written, and nothing may be sent."""
        return Written(set(), set())

    def close(
        self,
        entry_ids: Collection[int],  # noqa: ARG002 of the port
        go_on: Callable[[], bool] = lambda: True,  # noqa: ARG002 of the port
    ) -> list[Closed]:
        """Nothing is written."""
        return []

    def register(self) -> None:
        """Nothing: a plan is no dispatcher."""

    def signs_of_life(self, actors: Collection[str]) -> Mapping[str, SignOfLife]:
        """As ``inner`` does."""
        return self._inner.signs_of_life(actors)

    def heartbeat(self) -> None:
        """Nothing: a plan is no dispatcher."""

    def end(self) -> None:
        """Nothing: the owner of ``inner`` ends it."""


class ReadOnlyRuns:
    """A workspace that is connected to when it is first asked, and in which nothing is started."""

    def __init__(self, connect: Callable[[], DatabricksRuns]) -> None:
        self._open = connect

    @cached_property
    def _runs(self) -> DatabricksRuns:
        return self._open()

    def connect(self) -> None:
        """Connect now, before threads ask. Raises what connecting raises."""
        _ = self._runs

    def start(self, job_id: int, parameters: Mapping[str, str], idempotency_token: str) -> int:
        """Never."""
        raise NotImplementedError("a plan starts no run")

    def repair(self, run_id: int, parameters: Mapping[str, str], latest_repair_id: int | None) -> int:
        """Never."""
        raise NotImplementedError("a plan repairs no run")

    def look_up(self, run_id: int) -> RunSnapshot | MorePages[RunSnapshot]:
        """runs/get."""
        return self._runs.look_up(run_id)

    def find_started(
        self, job_id: int, since: datetime, parameters: Mapping[str, str]
    ) -> list[int] | MorePages[list[int]]:
        """runs/list."""
        return self._runs.find_started(job_id, since, parameters)

    @property
    def workspace(self) -> str:
        """The name of the workspace's host."""
        return self._runs.workspace

    def page_url(self, job_id: int, run_id: int) -> str:
        """The link to the run's page."""
        return self._runs.page_url(job_id, run_id)

    def scrub(self, text: str) -> str:
        """Without secrets."""
        return self._runs.scrub(text)


def _entry(job: WaitingJob, known: OpenEntry) -> Entry:
    return Entry(
        entry_id=job.run_id,
        run_id=job.run_id,
        generation=known.generation,
        branch=job.branch,
        state=EntryState.CLAIMED,
        job_id=job.job_id,
        previous_run_id=job.previous_run_id,
        parameters=job.parameters,
        idempotency_token="",
        attempts=known.attempts,
        ambiguous=known.ambiguous,
    )
