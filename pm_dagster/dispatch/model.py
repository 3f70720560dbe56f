"""The values that a dispatch works with: a row's entry, a Databricks run, a decision, and how a row leaves.

All are plain data without behaviour beyond reading themselves. What follows from them is in ``rules``; what a lost
answer means for an entry is in ``in_doubt``.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Generic, TypeVar

from pm_dagster.dispatch.waiting_job import Branch, WaitingJob
from pm_dagster.errors import ProcessManagerError, Refused

T = TypeVar("T")


class Call(StrEnum):
    """The calls that a dispatch makes, by their API names; each has its own rate."""

    RUN_NOW = "run-now"
    GET_RUN = "runs/get"
    REPAIR = "runs/repair"
    LIST_RUNS = "runs/list"


class Outcome(StrEnum):
    """How one row left a dispatch."""

    ACCEPTED = "accepted"
    ADOPTED = "adopted"
    DEFERRED = "deferred"
    QUARANTINED = "quarantined"
    #: The row left WAITING, or another dispatcher took it, before we sent anything.
    WITHDRAWN = "withdrawn"
    #: The row was looked at and nothing was sent for it. Only reported: the ledger keeps no such outcome.
    LEFT = "left"


# ---- a row of the ledger


class EntryState(StrEnum):
    """The life of an entry; ``in_doubt`` says what each means for the entry's call."""

    #: A dispatcher works on it; nothing has been sent. A dead dispatcher's claim lapses.
    CLAIMED = "CLAIMED"
    #: The intent is committed; a call may have taken effect. Never released by a clock.
    SENDING = "SENDING"
    #: The workspace's answer is recorded; the control table is still to be written.
    ACCEPTED = "ACCEPTED"
    #: A definite no for now; taken up again after ``not_before``.
    DEFERRED = "DEFERRED"
    #: A no for good; closed when the control table says so as well.
    QUARANTINED = "QUARANTINED"
    #: Closed: the control table has been written.
    SCHEDULED = "SCHEDULED"
    #: Closed: the row left WAITING before anything was sent, or was corrected since, and is taken anew.
    WITHDRAWN = "WITHDRAWN"


@dataclass(frozen=True)
class Entry:
    """One row of the ledger that this dispatcher owns, as last written: a waiting job and its generation.

    Attributes:
        entry_id: The ledger's id of the entry.
        run_id: The control plane's id of the row.
        generation: How often the row was taken up, from 1.
        branch: What the row needs.
        state: Where the entry stands.
        job_id: The Databricks job; 0 when none can be read.
        previous_run_id: The Databricks run to repair; None for a new run.
        parameters: The job parameters.
        idempotency_token: The token of its run-now; empty when nothing is ever sent.
        fresh_run: Whether a repair row is served by a new run, because there is nothing left to repair.
        sent_repair_id: The latest repair id that the recorded repair intent named.
        attempts: How many attempts are used up.
        rescued: Whether a dead dispatcher left it.
        waiting: Whether the control table still says WAITING, as of the claim.
        ambiguous: Whether an answer of this generation was lost, so that a call may have taken effect unseen.
        intent_at: When its first intent was committed.
        earlier_run_ids: The Databricks runs of the row's earlier generations.
        reason: Why an entry that comes back DEFERRED from its claim is not started.
        correction: How the row's owner corrected it since this was sent, for people; empty while it says the same.
        asks: What the row asks for now, where it was corrected to something that can be read.
        note: What became of the generation before, where the row was corrected in between.
    """

    entry_id: int
    run_id: int
    generation: int
    branch: Branch
    state: EntryState
    job_id: int
    previous_run_id: int | None
    parameters: Mapping[str, str]
    idempotency_token: str
    fresh_run: bool = False
    sent_repair_id: int | None = None
    attempts: int = 0
    rescued: bool = False
    waiting: bool = True
    ambiguous: bool = False
    intent_at: datetime | None = None
    earlier_run_ids: tuple[int, ...] = ()
    reason: str = ""
    correction: str = ""
    asks: WaitingJob | None = None
    note: str = ""

    @property
    def starts_new_run(self) -> bool:
        """True when the call to make is run-now, false when it is a repair."""
        return self.branch is Branch.NEW or self.fresh_run


@dataclass(frozen=True)
class TokenSubject:
    """What a row asks for, as far as its token stands for it; ``since`` is the work's time of arrival."""

    job_id: int
    parameters: Mapping[str, str]
    since: datetime | None = None


def idempotency_token(environment: str, control_table: str, run_id: int, generation: int, asked: TokenSubject) -> str:
    """The token that makes sending a new run again safe: 64 hex characters, the most that run-now takes.

    A pure function of what must not run twice: the row's place in the ledger, and what it asks for. After a restore
    another row may get a number that was given before; it asks for something else, or since another time. The same row
    gets the same token again, and so its run. The job id takes part also because the API's answer to one token for two
    jobs is not documented (https://docs.databricks.com/api/workspace/jobs/runnow).
    """
    identity = [environment, control_table, run_id, generation, asked.job_id]
    identity += [sorted(asked.parameters.items()), _moment(asked.since)]
    return hashlib.sha256(json.dumps(identity, ensure_ascii=True).encode()).hexdigest()


def _moment(since: datetime | None) -> str | None:
    """One form for one moment, whatever zone it came in; one without a zone is taken as it is."""
    if since is None:
        return None
    with suppress(OverflowError):
        # The first and the last hours that Python has do not exist in every zone.
        since = since.astimezone(UTC) if since.tzinfo else since
    return since.isoformat(timespec="microseconds")


# ---- a Databricks run

#: The words are those of the Jobs API (https://docs.databricks.com/api/workspace/jobs/getrun).
_ACTIVE = frozenset({"BLOCKED", "PENDING", "QUEUED", "RUNNING", "TERMINATING", "WAITING", "WAITING_FOR_RETRY"})
_NEVER_RAN = frozenset({"SKIPPED", "MAX_CONCURRENT_RUNS_EXCEEDED", "MAX_JOB_QUEUE_SIZE_EXCEEDED", "DISABLED"})


class Standing(StrEnum):
    """Where a run stands, as far as a dispatch is concerned."""

    #: Under way, or in a state we do not know: neither repair nor trigger again.
    ACTIVE = "active"
    SUCCEEDED = "succeeded"
    #: Ended without doing all its work; a repair re-runs what failed.
    REPAIRABLE = "repairable"
    #: Never executed (skipped, queue overflow): there is nothing in it to repair.
    NEVER_RAN = "never ran"


@dataclass(frozen=True)
class RunSnapshot:
    """A run as one ``runs/get`` showed it. Words the SDK does not know arrive as None.

    ``latest_repair_id`` is the id of the newest entry of the repair history that has one, None without repairs;
    ``repair_ids`` are all of them in order.
    """

    run_id: int
    job_id: int | None
    life_cycle_state: str | None
    result_state: str | None
    status_state: str | None = None
    termination_code: str | None = None
    message: str = ""
    repair_ids: tuple[int, ...] = ()
    page_url: str | None = None

    @property
    def latest_repair_id(self) -> int | None:
        """The id that the next repair has to name, None for the first."""
        return self.repair_ids[-1] if self.repair_ids else None

    @property
    def words(self) -> str:
        """The state as the workspace words it, for people."""
        seen = (self.life_cycle_state or self.status_state, self.result_state or self.termination_code)
        return "/".join(word for word in seen if word) or "an unknown state"

    @property
    def standing(self) -> Standing:
        """Classify; a run in a state unknown to us counts as active, so that nothing is started beside it."""
        state = self.life_cycle_state or self.status_state
        if state is None or state in _ACTIVE:
            return Standing.ACTIVE
        if state == "SKIPPED" or (self.result_state is None and self.termination_code in _NEVER_RAN):
            return Standing.NEVER_RAN
        if self.result_state == "SUCCESS" or (self.result_state is None and self.termination_code == "SUCCESS"):
            return Standing.SUCCEEDED
        return Standing.REPAIRABLE


@dataclass(frozen=True, slots=True)
class KnownRun:
    """A Databricks run as the ledger knows it: the entry whose work it is, or whose repair of it may be under way.

    ``row`` names the entry's row for people. ``unresolved`` is true while a repair may be under way unseen.
    """

    databricks_run_id: int
    entry_id: int
    control_table: str
    run_id: int
    generation: int
    repair_id: int | None = None
    superseded: bool = False
    unresolved: bool = False

    @property
    def row(self) -> str:
        """The row for people."""
        return f"row {self.run_id} of {self.control_table}"


# ---- what can be decided for a row: its next call, or how it leaves the dispatch


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
    """Refuse the row for good. ``rule`` says which rule makes it final."""

    reason: str
    rule: str = ""


@dataclass(frozen=True)
class Hold:
    """Refuse the row for good once another call shows that the refusal is the row's fault.

    ``rule`` is what makes it final beside that. ``starting`` is true when the refused call was to start something.
    """

    reason: str
    refusal: Refused
    starting: bool
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


#: A call to make next.
Step = StartRun | RepairRun | LookUp | FindRun
Decision = Step | Again | Accept | Adopt | Defer | Quarantine | Hold | Withdraw | Supersede | Stop


# ---- a row on its way through a dispatch

_CALL_OF: dict[type, Call] = {
    StartRun: Call.RUN_NOW,
    RepairRun: Call.REPAIR,
    LookUp: Call.GET_RUN,
    FindRun: Call.LIST_RUNS,
}


@dataclass(eq=False)
class CallStart:
    """The start of one call, as the rate limiter counts it.

    Attributes:
        at: When the call left, in monotonic seconds; infinite while it has not left.
        throttled: Whether its answer was 429.
        reserved_at: When its moment was reserved among several dispatchers; infinite where none was.
        reserved_for: That moment.
        noted_at: Its moment in the record that dispatchers share, in seconds of the record's clock.
    """

    at: float = math.inf
    throttled: bool = False
    reserved_at: float = math.inf
    reserved_for: float = -math.inf
    noted_at: float | None = None

    @property
    def left(self) -> bool:
        """Whether the call has left."""
        return self.at < math.inf

    def counts_at(self, now: float) -> float:
        """The moment that counts: one that has not left counts as leaving now, or when it may."""
        return self.at if self.left else max(now, self.reserved_for)


@dataclass
class Work:
    """One row in the worker's memory: its entry and the call to make next.

    Attributes:
        entry: The entry as last known.
        step: The call to make next.
        unanswered: By call, how many tries had no usable answer.
        refusals: By call, how many tries were cleanly refused.
        refused: By call, the newest refusal.
        probing: Whether its call goes out alone, to find out whether the workspace takes calls at all.
        seen: The run as it was last looked up.
        restarts: How often the row was corrected in this dispatch before anything was sent.
        more: Where the step reads several pages: the page that comes next.
        start: When its last call started, and whether that was throttled.
    """

    entry: Entry
    step: Step
    unanswered: Counter[Call] = field(default_factory=Counter)
    refusals: Counter[Call] = field(default_factory=Counter)
    refused: dict[Call, Refused] = field(default_factory=dict)
    probing: bool = False
    seen: RunSnapshot | None = None
    restarts: int = 0
    more: MorePages[object] | None = None
    start: CallStart = field(default_factory=lambda: CallStart(-math.inf))

    @property
    def call(self) -> Call:
        """The API call of the next step."""
        return _CALL_OF[type(self.step)]

    @property
    def kind(self) -> tuple[Call, int]:
        """What may be in trouble as a whole: this call for this job."""
        return self.call, self.entry.job_id

    @property
    def changes_workspace(self) -> bool:
        """True when the call starts something, so that its intent has to be committed first."""
        return self.call in (Call.RUN_NOW, Call.REPAIR)


@dataclass(frozen=True)
class MorePages(Generic[T]):
    """A reading that is not at its end: each further page is a call of its own, paced like every other.

    Attributes:
        next_page: Makes the call for the next page. Another try of it after it failed is allowed.
    """

    next_page: Callable[[], T | MorePages[T]]


def read_whole(reading: T | MorePages[T]) -> T:
    """Read on to the end at once, for whoever has no pace to keep."""
    while isinstance(reading, MorePages):
        reading = reading.next_page()
    return reading


@dataclass(frozen=True)
class Answer:
    """What one HTTP attempt brought.

    Attributes:
        value: The run's or repair's id, the snapshot of a run, the ids of the runs that a search found, or
            ``MorePages``.
        error: What it failed with; None for a good answer.
        seconds: How long it took.
    """

    value: object
    error: ProcessManagerError | None
    seconds: float


@dataclass(frozen=True)
class RowOutcome:
    """How one row leaves the dispatch: a decision, beside the entry that it is about.

    Attributes:
        entry: The entry as it was when that was decided.
        outcome: How it leaves.
        reason: Why, for people.
        run_id: The Databricks run that stands for the row.
        repair_id: The repair of that run that stands for the row.
        succeeded: Whether that run has succeeded already.
        defer_seconds: For how long the row is left alone.
        counts_as_attempt: Whether one of its attempts is used up.
        rule: The rule that makes a refusal final.
        superseded: Whether the row was corrected, so that the control table is not written.
    """

    entry: Entry
    outcome: Outcome
    reason: str
    run_id: int | None = None
    repair_id: int | None = None
    succeeded: bool = False
    defer_seconds: float = 0.0
    counts_as_attempt: bool = False
    rule: str = ""
    superseded: bool = False
