"""What a dispatch needs of the outside: the workspace, the control table with its ledger, and the records between them.

``DatabricksRuns`` is implemented by ``pm_dagster.databricks`` over the official SDK, ``ControlPlane`` by
``pm_dagster.ledger``. The fakes of the tests pass the same contract suites.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, NamedTuple, Protocol

from pm_dagster.dispatch.model import Call, Entry, EntryState, KnownRun, MorePages, Outcome, RunSnapshot
from pm_dagster.dispatch.untakeable import Untakeable
from pm_dagster.dispatch.waiting_job import RawRow, RefusedRow, WaitingJob

#: Makes of the record of a budget, None for none, and of the seconds of the record's clock what is to be written.
BudgetChange = Callable[[dict[str, Any] | None, float], dict[str, Any]]


class DatabricksRuns(Protocol):
    """The Jobs API as a dispatch sees it: one HTTP attempt for each call, no hidden retry, ids as integers.

    Raises:
        WorkspaceUnavailable: No usable answer; ``maybe_applied`` says whether the call may have taken effect.
        Throttled: HTTP 429, with the pause in seconds that the workspace asks for.
        AuthenticationFailed: The credentials, or the network of the call, are not accepted.
        Refused: The Jobs API itself says no to this call.
    """

    @property
    def workspace(self) -> str:
        """The name of the workspace's host."""

    def start(self, job_id: int, parameters: Mapping[str, str], idempotency_token: str) -> int:
        """run-now; returns the run id, that of the existing run if the token was used before."""

    def look_up(self, run_id: int) -> RunSnapshot | MorePages[RunSnapshot]:
        """runs/get with the whole repair history, page by page.

        Raises Refused with ``gone`` when the run does not exist.
        """

    def repair(self, run_id: int, parameters: Mapping[str, str], latest_repair_id: int | None) -> int:
        """runs/repair of all failed tasks; returns the repair id."""

    def find_started(
        self, job_id: int, since: datetime, parameters: Mapping[str, str]
    ) -> list[int] | MorePages[list[int]]:
        """The runs of the job that started after ``since`` with these job parameters, newest first, page by page."""

    def page_url(self, job_id: int, run_id: int) -> str:
        """The link to the run's page, made without a call."""

    def scrub(self, text: str) -> str:
        """``text`` without any secret of this connection."""


@dataclass(frozen=True)
class Event:
    """One line of an entry's history.

    Attributes:
        kind: What happened, such as ``claimed``, ``answer`` or ``deferred``.
        detail: The same for people, without secrets.
        call: The API call, where it was one.
        status: Its HTTP status.
        seconds: Its duration.
    """

    kind: str
    detail: str = ""
    call: Call | None = None
    status: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Change:
    """What was learned about an entry, written in one transaction.

    Attributes:
        entry_id: The entry in the ledger.
        events: Lines to add to its history, in their order.
        state: The new state; None leaves the state as it is.
        outcome: How the row left the dispatch, once it did.
        succeeded: Whether the adopted run has succeeded already.
        accepted_run_id: The Databricks run that stands for the row.
        accepted_repair_id: The repair of that run that stands for the row.
        page_url: The run's page.
        reason: Why, for people.
        defer_seconds: The row is left alone for so many seconds from the database's now.
        counts_as_attempt: Whether one of the row's attempts is used up.
        ambiguous: Whether the call may have taken effect unseen.
        rule: The rule that made a refusal final.
        superseded: Whether the row was corrected, so that the control table is not written.
        found: Whether a search found the run: it is taken only if it is no other row's.
    """

    entry_id: int
    events: tuple[Event, ...]
    state: EntryState | None = None
    outcome: Outcome | None = None
    succeeded: bool = False
    accepted_run_id: int | None = None
    accepted_repair_id: int | None = None
    page_url: str | None = None
    reason: str | None = None
    defer_seconds: float | None = None
    counts_as_attempt: bool = False
    ambiguous: bool = False
    rule: str | None = None
    superseded: bool = False
    found: bool = False

    @property
    def only_tells(self) -> bool:
        """Whether nothing changes but the entry's history."""
        return replace(self, events=()) == Change(self.entry_id, ())

    def passed_over(self) -> Change:
        """What is written instead when the run became another row's meanwhile: the call, and that."""
        told = Event("passed over", f"run {self.accepted_run_id} became another row's work meanwhile")
        return Change(self.entry_id, (*self.events[:-1], told), ambiguous=self.ambiguous)


def taken_at_once(changes: Sequence[Change]) -> set[int]:
    """The entries that found a run which another of the changes takes; all changes are written together."""
    taken = {change.accepted_run_id for change in changes if not change.found}
    late = set()
    for change in changes:
        if change.found and change.accepted_run_id in taken:
            late.add(change.entry_id)
        elif change.found:
            taken.add(change.accepted_run_id)
    return late


class Written(NamedTuple):
    """What came of writing answers and intents together.

    Attributes:
        passed_over: The entries that may not take the run which they found, as ``ControlPlane.record`` gives them.
        granted: The entries that may be sent now, as ``ControlPlane.intend`` gives them.
    """

    passed_over: set[int]
    granted: set[int]


@dataclass(frozen=True)
class Closed:
    """An entry that is closed.

    Attributes:
        entry_id: The entry in the ledger.
        run_id: The control plane's id of the row.
        state: SCHEDULED, QUARANTINED or WITHDRAWN.
        outcome: How the row left the dispatch that decided it.
        accepted_run_id: The Databricks run that stands for the row.
        accepted_repair_id: The repair of that run that stands for the row.
        page_url: The run's page.
        reason: Why, for people.
        control_status: What the control table says now; None when it has no such row.
        superseded: Whether the control table was not written because the row had been corrected.
    """

    entry_id: int
    run_id: int
    state: EntryState
    outcome: Outcome | None
    accepted_run_id: int | None
    accepted_repair_id: int | None
    page_url: str | None
    reason: str
    control_status: str | None
    superseded: bool = False


@dataclass(frozen=True)
class Backlog:
    """How many rows wait at this moment, and for what.

    Attributes:
        ready: Rows that a dispatch would take.
        oldest_seconds: The age of the oldest of them; None without any.
        backing_off: Rows that were put off and whose time has not come.
        quarantined: Rows that were refused for good.
        in_hand: Rows that a living dispatcher works on.
        extra: Further counts by name, such as ``unresolved``.
        question: What the ledger asks its operator before anything is dispatched; empty when it asks nothing.
        untakeable: Rows that the view shows and no dispatch can take as they are (``Untakeable``).
        locked: Rows that would be ready if somebody else did not hold them locked at this moment.
    """

    ready: int
    oldest_seconds: float | None
    backing_off: int = 0
    quarantined: int = 0
    in_hand: int = 0
    extra: Mapping[str, int] = field(default_factory=dict)
    question: str = ""
    untakeable: int = 0
    locked: int = 0


@dataclass(frozen=True)
class SignOfLife:
    """What is known of a dispatcher.

    Attributes:
        alive: Whether it lives. One that does not may only have lost its connection, or be about to start again.
        left: Whether a dispatcher of that name left properly.
        seconds_ago: Seconds since it was last seen.
    """

    alive: bool
    left: bool
    seconds_ago: float


class ControlPlane(Protocol):
    """The control table and the ledger beside it, as one dispatcher sees them.

    Each method is one transaction. Every write is guarded by our ownership of the entry: a dispatcher that lost its
    claim writes nothing.

    Raises:
        ControlPlaneUnavailable: The database does not answer. The method may be called again and continues.
        ConfigurationError: The database is not as configured.
    """

    def backlog(self) -> Backlog:
        """Count what waits, with one cheap query."""

    def waiting(self, limit: int, seen: Collection[int] | None = None) -> list[RawRow]:
        """The rows that a dispatch may take, oldest first; rows that were put off before come last. Takes nothing.

        Args:
            limit: The most rows. A few rows whose run id the ledger cannot hold come on top, so that they are reported.
            seen: Rows to leave out.
        """

    def has_work(self, *, ours: bool = False) -> bool:
        """Whether there is a row that a dispatch would take, or an entry that a dead dispatcher left; one small query.

        Args:
            ours: Entries of this dispatcher count as well that are to be sent or closed again by now.
        """

    def untakeable(self, limit: int, run_ids: Collection[int] | None = None) -> list[Untakeable]:
        """Rows that the view shows and no dispatch can take as they are, with the reasons. Takes nothing.

        Args:
            limit: The most rows.
            run_ids: Looks only among these rows.
        """

    def held(self, run_ids: Collection[int]) -> set[int]:
        """The run ids of waiting rows that somebody else holds locked at this moment. Takes nothing."""

    def shown(self, run_ids: Collection[int]) -> list[RawRow]:
        """The rows that still wait, as the view shows them now, in no order."""

    def claim(self, jobs: Sequence[WaitingJob]) -> list[Entry]:
        """Take the jobs that are still WAITING and free, as they are now; others are left out.

        What cannot be closed is not started: an entry whose row the control table would not take comes back DEFERRED,
        with the reason.
        """

    def refuse(self, rows: Sequence[RefusedRow]) -> list[RefusedRow]:
        """Quarantine the rows that still break their rules, and return these."""

    def rescue(self, limit: int) -> list[Entry]:
        """Take entries that a dead dispatcher left in SENDING or ACCEPTED, also when the view has lost the row."""

    def resume(self, entry_ids: Collection[int]) -> list[Entry]:
        """The entries as they stand, as far as they are ours or can be rescued now."""

    def intend(self, entries: Sequence[Entry]) -> set[int]:
        """Commit the intents of the entries' calls; returns the ids of the entries that may be sent now.

        Each entry is as it will be (``in_doubt.intent_committed``): it says whether a new run is started, and which
        latest repair a repair names.

        An entry is left out when its row left WAITING, was taken by another dispatcher, or was corrected since it was
        claimed. ``resume`` gives what a corrected row asks for now.
        """

    def known_runs(self, databricks_run_ids: Collection[int]) -> list[KnownRun]:
        """What the ledger knows of these runs, newest first; read before a run that was found is taken."""

    def record(self, changes: Sequence[Change]) -> set[int]:
        """Write what was learned, at most one change for each entry.

        Returns the ids of entries whose ``found`` run became another row's since ``known_runs`` was read. Their calls
        are in doubt as before.
        """

    def record_and_intend(self, changes: Sequence[Change], entries: Sequence[Entry]) -> Written:
        """``record`` and then ``intend``, in one transaction: all of it is done or nothing."""

    def close(self, entry_ids: Collection[int], go_on: Callable[[], bool] = lambda: True) -> list[Closed]:
        """Write the control table for entries that are ACCEPTED or QUARANTINED, and close them.

        A table that is too slow for all at once is written in several transactions. Rows that somebody else holds
        locked stay open for the next dispatch.

        Args:
            entry_ids: The entries; those in other states are left as they are.
            go_on: Asked between transactions; once it says no, the rest stays open.

        Returns:
            The entries that are closed, also those that were closed before, by whomever.
        """

    def share_budget(self, workspace: str, change: BudgetChange) -> bool:
        """Change the record that the dispatchers of a workspace share about its API, while nobody else can.

        Of its own transaction, with one try, and cheap. ``change`` is called once or not at all.

        Args:
            workspace: Whose record.
            change: Gives what is written instead. It may keep nobody waiting.

        Returns:
            Whether the record is shared with other dispatchers; False where ``change`` was not called.

        Raises:
            ControlPlaneUnavailable: The record cannot be had at this moment.
            ConfigurationError: It can never be had.
        """

    def register(self) -> None:
        """Become a dispatcher before the first write does it, so that others can see that this one lives."""

    def signs_of_life(self, actors: Collection[str]) -> Mapping[str, SignOfLife]:
        """What is known of the dispatchers with these names, by name; one that never registered is left out."""

    def heartbeat(self) -> None:
        """Say that this dispatcher lives. It is cheap and may be called often."""

    def end(self) -> None:
        """Give up all claims but those of entries in SENDING, and leave. Never raises."""
