"""All that the core needs of the outside: the workspace and the control plane, and the records that cross over.

``DatabricksRuns`` is implemented by ``pm_dagster.databricks`` over the official SDK, ``ControlPlane`` by
``pm_dagster.ledger``; the fakes of the tests pass the same contract suites.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from pm_dagster.dispatch.model import Call, Entry, EntryState, KnownRun, Outcome, RunSnapshot
from pm_dagster.dispatch.untakeable import Untakeable
from pm_dagster.dispatch.waiting_job import RawRow, RefusedRow, WaitingJob


class DatabricksRuns(Protocol):
    """The Jobs API as a dispatch sees it: one HTTP attempt a call, no hidden retry, ids as integers.

    Every method raises WorkspaceUnavailable, Throttled, AuthenticationFailed or Refused, and nothing else.
    """

    def start(self, job_id: int, parameters: Mapping[str, str], idempotency_token: str) -> int:
        """run-now; returns the run id: that of the run which exists, if the token was used before."""

    def look_up(self, run_id: int) -> RunSnapshot:
        """runs/get with the whole repair history. Raises Refused with ``gone`` when the run does not exist."""

    def repair(self, run_id: int, parameters: Mapping[str, str], latest_repair_id: int | None) -> int:
        """runs/repair of all failed tasks; returns the repair id."""

    def find_started(self, job_id: int, since: datetime, parameters: Mapping[str, str]) -> list[int]:
        """The runs of the job that started after ``since`` with these job parameters, the newest first."""

    def page_url(self, job_id: int, run_id: int) -> str:
        """The link to the run's page; makes no call."""

    def scrub(self, text: str) -> str:
        """``text`` without any secret of this connection."""


@dataclass(frozen=True)
class Event:
    """One line of an entry's history. ``seconds`` is the duration of a call, ``status`` its HTTP status."""

    kind: str
    detail: str = ""
    call: Call | None = None
    status: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Intent:
    """A call that is about to be made, committed before it is: a new run, or a repair naming ``latest_repair_id``."""

    entry: Entry
    fresh_run: bool = False
    latest_repair_id: int | None = None


@dataclass(frozen=True)
class Change:
    """What was learned about an entry, to be written at once.

    ``state`` None leaves the state and only adds events. ``defer_seconds`` counts from the database's now. ``rule`` is
    what made a refusal final. ``found`` when the run was found by a search: it is taken only if it is no other row's.
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

    def passed_over(self) -> Change:
        """What is written in place of a change whose run has become another row's: the call, and that it was so."""
        told = Event("passed over", f"run {self.accepted_run_id} became another row's work meanwhile")
        return Change(self.entry_id, (*self.events[:-1], told), ambiguous=self.ambiguous)


def taken_at_once(changes: Sequence[Change]) -> set[int]:
    """Of changes that are written together: the entries that found a run which another of them takes."""
    taken = {change.accepted_run_id for change in changes if not change.found}
    late = set()
    for change in changes:
        if change.found and change.accepted_run_id in taken:
            late.add(change.entry_id)
        elif change.found:
            taken.add(change.accepted_run_id)
    return late


@dataclass(frozen=True)
class Closed:
    """An entry after closing. ``control_status`` is what the control table now says."""

    entry_id: int
    run_id: int
    state: EntryState
    outcome: Outcome | None
    accepted_run_id: int | None
    accepted_repair_id: int | None
    page_url: str | None
    reason: str
    control_status: str | None
    #: Whether it was closed without writing the control table, because the row had been corrected.
    superseded: bool = False


@dataclass(frozen=True)
class Backlog:
    """What waits at this moment: rows a dispatch would take, and the age in seconds of the oldest (None if none).

    ``untakeable`` rows are shown by the view, but no dispatch can take them as they are (``Untakeable``). ``locked``
    counts rows that would be ready if somebody else did not hold them all locked at this moment.
    """

    ready: int
    oldest_seconds: float | None
    backing_off: int = 0
    quarantined: int = 0
    in_hand: int = 0
    extra: Mapping[str, int] = field(default_factory=dict)
    #: What the ledger asks of its operator before anything is dispatched, empty where nothing is asked.
    question: str = ""
    untakeable: int = 0
    locked: int = 0


@dataclass(frozen=True)
class SignOfLife:
    """What is known of a dispatcher: whether it lives, whether one of that name left properly, when it was last seen.

    One that is not alive may only have lost its connection for a moment, or be about to start anew.
    """

    alive: bool
    left: bool
    seconds_ago: float


class ControlPlane(Protocol):
    """The control table and the ledger beside it, as one dispatcher sees them.

    Each method is one transaction. Every write is guarded by our ownership of the entry, so a dispatcher that lost its
    claim writes nothing. Raises ControlPlaneUnavailable when the database does not answer, ConfigurationError when
    it is not as configured; every method may be called again after ControlPlaneUnavailable and continues.
    """

    def backlog(self) -> Backlog:
        """Count what waits; one cheap query."""

    def waiting(self, limit: int, seen: Collection[int] | None = None) -> list[RawRow]:
        """The rows that a dispatch may take, at most ``limit``; takes nothing.

        The oldest come first, and rows that were left for later after those that were not tried yet. A few rows whose
        run id the ledger cannot hold come in addition to the limit, so that they are told. With ``seen`` the next rows
        are read: those neither among them nor locked by somebody else at this moment.
        """

    def untakeable(self, limit: int, run_ids: Collection[int] | None = None) -> list[Untakeable]:
        """Rows that the view shows and no dispatch can take as they are, at most ``limit``, with the reasons.

        With ``run_ids`` only among these rows. Takes nothing.
        """

    def held(self, run_ids: Collection[int]) -> set[int]:
        """Those of the waiting rows that somebody else holds locked at this moment. Takes nothing."""

    def shown(self, run_ids: Collection[int]) -> list[RawRow]:
        """Those of the rows that still wait, as the view shows them now, in no order."""

    def claim(self, jobs: Sequence[WaitingJob]) -> list[Entry]:
        """Take the jobs that are still WAITING and free, as they are now; others are left out.

        What cannot be closed is not to be started: an entry whose row the control table would not take comes back
        DEFERRED, with the reason.
        """

    def refuse(self, rows: Sequence[RefusedRow]) -> list[RefusedRow]:
        """Record those of the rows that are to be refused as they are now as quarantined, and return them."""

    def rescue(self, limit: int) -> list[Entry]:
        """Take entries that a dead dispatcher left in SENDING or ACCEPTED, whether or not the view still has them."""

    def resume(self, entry_ids: Collection[int]) -> list[Entry]:
        """The named entries that are ours or can be taken over now, as they stand."""

    def intend(self, intents: Sequence[Intent]) -> set[int]:
        """Commit the intents; returns the ids of the entries that may be sent now.

        Left out are those whose row left WAITING, was taken by another dispatcher, or was corrected since it was
        claimed. Of the latter, ``resume`` gives what is to be done now.
        """

    def known_runs(self, databricks_run_ids: Collection[int]) -> list[KnownRun]:
        """What the ledger knows of these runs, the newest first; asked before one that was found is taken."""

    def record(self, changes: Sequence[Change]) -> set[int]:
        """Write what was learned; at most one change for each entry.

        Gives the ids of the entries that were to take a run which they ``found`` and which became another row's since
        ``known_runs`` was asked: these are in doubt as before.
        """

    def close(self, entry_ids: Collection[int], go_on: Callable[[], bool] = lambda: True) -> list[Closed]:
        """Write the control table for entries that are ACCEPTED or QUARANTINED, and close them.

        A table that is too slow for all at once is written in several transactions; once ``go_on`` says no, the rest
        stays for later.

        Rows that somebody else holds locked stay for the next dispatch. Entries closed before are told again, whoever
        closed them: an earlier step may have been another dispatcher.
        """

    def register(self) -> None:
        """Become a dispatcher now, before the first write does it, so that others can see that this one lives."""

    def signs_of_life(self, actors: Collection[str]) -> Mapping[str, SignOfLife]:
        """What is known of the dispatchers with these names; who never registered is left out."""

    def heartbeat(self) -> None:
        """Say that this dispatcher lives; cheap, may be called often."""

    def end(self) -> None:
        """Give up all claims that are not SENDING's business and leave; never raises."""
