"""One HTTP attempt for one row: which call a step means, its answer, and what the answer decides.

Put here: the translation between steps, port calls and events. Keep out: order, pace and storage.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from pm_dagster.dispatch import decisions as steps
from pm_dagster.dispatch import rules as decisions
from pm_dagster.dispatch.corrections import Whose
from pm_dagster.dispatch.decisions import Decision
from pm_dagster.dispatch.ledger_entry import Entry
from pm_dagster.dispatch.ports import Call, DatabricksRuns, Event
from pm_dagster.dispatch.rules import Policy
from pm_dagster.dispatch.run_state import RunSnapshot
from pm_dagster.errors import ProcessManagerError, Refused

_CALL_OF: dict[type, Call] = {
    steps.StartRun: Call.RUN_NOW,
    steps.RepairRun: Call.REPAIR,
    steps.LookUp: Call.GET_RUN,
    steps.FindRun: Call.LIST_RUNS,
}


_MOST_TOLD = 5


@dataclass
class Work:
    """One row on its way: the entry as last known and the step to do next.

    ``unanswered`` counts, per call, the attempts without a usable answer; ``refusals``, per call, the clean refusals.
    ``refused`` has the newest of these. ``probing`` is true while it is called alone, to find out about all calls.
    ``known`` says whose the run is that was found, ``seen`` is the run as it was last looked up, ``restarts`` counts
    how often the row was corrected in this dispatch before anything was sent.
    """

    entry: Entry
    step: Decision
    unanswered: Counter[Call] = field(default_factory=Counter)
    refusals: Counter[Call] = field(default_factory=Counter)
    refused: dict[Call, Refused] = field(default_factory=dict)
    probing: bool = False
    known: Whose = field(default_factory=Whose)
    seen: RunSnapshot | None = None
    restarts: int = 0

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
class Answer:
    """What one HTTP attempt brought: a value or an error, and how long it took in seconds."""

    value: object
    error: ProcessManagerError | None
    seconds: float


def attempt(work: Work, runs: DatabricksRuns, clock: Callable[[], float]) -> Answer:
    """Make the call; runs in a worker thread. Never raises a ProcessManagerError."""
    began = clock()
    try:
        return Answer(_call(work, runs), None, clock() - began)
    except ProcessManagerError as error:
        return Answer(None, error, clock() - began)


def _call(work: Work, runs: DatabricksRuns) -> object:
    entry, step = work.entry, work.step
    if isinstance(step, steps.StartRun):
        return runs.start(entry.job_id, entry.parameters, entry.idempotency_token)
    if isinstance(step, steps.RepairRun):
        return runs.repair(_previous(entry), entry.parameters, step.latest_repair_id)
    if isinstance(step, steps.FindRun):
        since = entry.intent_at or datetime.fromtimestamp(0, UTC)
        return runs.find_started(entry.job_id, since, entry.parameters)
    return runs.look_up(_previous(entry))


def _previous(entry: Entry) -> int:
    if entry.previous_run_id is None:
        message = f"entry {entry.entry_id} has no previous run to look up or repair"
        raise ValueError(message)
    return entry.previous_run_id


def event_of(work: Work, answer: Answer, scrub: Callable[[str], str]) -> Event:
    """The line of history for one attempt."""
    status = getattr(answer.error, "status", None) if answer.error else 200
    if answer.error is not None:
        detail = scrub(str(answer.error))
    elif isinstance(answer.value, RunSnapshot):
        detail = f"run {answer.value.run_id} is {answer.value.words}, latest repair {answer.value.latest_repair_id}"
    elif isinstance(answer.value, list):
        detail = f"runs that may be meant: {', '.join(map(str, answer.value[:_MOST_TOLD])) or 'none'}"
    else:
        detail = f"{'repair' if work.call is Call.REPAIR else 'run'} {answer.value}"
    return Event(kind="answer", detail=detail, call=work.call, status=status, seconds=answer.seconds)


def decide(work: Work, answer: Answer, policy: Policy) -> Decision:
    """What follows from an answer."""
    entry, value = work.entry, answer.value
    if answer.error is not None:
        tries, refusals = work.unanswered[work.call], work.refusals[work.call]
        return decisions.after_failure(entry, work.call, answer.error, tries, refusals, policy, _words(work))
    if isinstance(value, RunSnapshot):
        return decisions.after_look_up(entry, value, policy, work.known)
    number = value if isinstance(value, int) else None
    if work.call is Call.LIST_RUNS or number is None:
        return decisions.after_find(entry, number, _words(work))
    if work.call is Call.REPAIR:
        return steps.Accept(_previous(entry), number, f"repair {number} of run {entry.previous_run_id}")
    why = work.step.reason if isinstance(work.step, steps.StartRun) else ""
    return steps.Accept(number, None, f"new run {number}" + (f": {why}" if why else ""))


def _words(work: Work) -> str:
    """What the workspace said to run-now before it is asked which runs there are."""
    refused = work.refused.get(Call.RUN_NOW) if work.call is Call.LIST_RUNS else None
    return "" if refused is None else str(refused)
