"""What to do next for a row, given what is known: every rule of the dispatch, as pure functions.

A call is decided in three places of a row's way: ``first_step`` as the ledger has it, ``decide`` after an answer, and
``after_witness`` or ``without_witness`` where a refusal was held. What the dispatch has seen beside the row (the rate
limiter's pause, an outage, what is proven, whose runs are whose) comes in as ``Facts``; nothing outside this module
changes a decision. A repair is decided by the run's history, never by the text of a message.

Retries. A call without an answer is made at most ``call_tries`` times, after pauses that double from
``call_backoff_seconds`` on: with the defaults 4 times within 7 s, and then its row waits ``settle_seconds``. An
op of Dagster runs at most 4 times, so the worst case is 16 tries of one call in one dispatch, all before its deadline.
A 429 uses up no try, and a row is not waited for longer than a minute. A refusal that may pass puts its row off for
``settle_seconds``, doubled each time up to an hour, ``max_attempts`` times.

What an owner corrects while a call for the former values is under way: what was sent is resolved and recorded, the
control table is not written, and the row is then taken as it is now, as a new generation. So a row never says SCHEDULED
with a value while a run with another value is what stands for it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import overload

from pm_dagster.dispatch.in_doubt import had_no_effect, has_intent, is_in_doubt, released
from pm_dagster.dispatch.model import (
    Accept,
    Adopt,
    Again,
    Answer,
    Call,
    Decision,
    Defer,
    Entry,
    EntryState,
    FindRun,
    Hold,
    KnownRun,
    LookUp,
    Outcome,
    Quarantine,
    RepairRun,
    RowOutcome,
    RunSnapshot,
    Standing,
    StartRun,
    Step,
    Stop,
    Supersede,
    Withdraw,
    Work,
)
from pm_dagster.dispatch.ports import Change, Event
from pm_dagster.dispatch.waiting_job import RefusedRow, WaitingJob
from pm_dagster.errors import AuthenticationFailed, Kind, ProcessManagerError, Refused, Throttled, WorkspaceUnavailable
from pm_dagster.text import clause

#: The only refusal that passes by itself.
_CONFLICT = 409
_NO_FRESH_RUN = "the earlier run cannot be repaired, and PM_MISSING_RUN=fail allows no fresh one"
#: No pause doubles beyond an hour: a row that is left for longer looks as if it were forgotten.
_LONGEST_PAUSE = 3600.0
#: Of a second, eighteen hours; attempts are counted without an end while a row is in doubt.
_DOUBLINGS = 16
#: A longer Retry-After than this leaves the row for a later dispatch.
_LONGEST_THROTTLE = 60.0
#: A row that waits for the end of another row's run is looked at again after so many times of settling.
_SETTLINGS = 4
_SHOWN_LIMIT = 60

BY_NAME = "the Jobs API itself says so about this job, this run or these parameters"
BY_LATER_SUCCESS = "the Jobs API says so, and it accepted a call of another row afterwards"
BY_EARLIER_SUCCESS = "the Jobs API says so, and it accepted a call of another row just before"
AS_PROVEN = "the Jobs API gave the same answer to another row of this job, and that row was found to be at fault"
_CONTRADICTED = "the workspace accepted a call of another row of the same job afterwards"
_NO_WITNESS = (
    "the refusal names no job, run or parameter, or is about rights, and no other row's call succeeded around that time"
)
_ALL_REFUSED = "the workspace refused all calls at the time"
#: So many rows refused in a row make one ask whether it is the rows.
SUSPICIOUS_ROWS = 5
#: A workspace in which so many jobs do not exist, and none does, is another workspace.
SUSPICIOUS_JOBS = 3
#: A refusal that needs a good answer nearby is near to it when no more rows were refused since.
_NEAR_ROWS = 2


@dataclass(frozen=True)
class Policy:
    """The settings that the rules depend on; see ``Settings`` for their meaning. Times are seconds."""

    fresh_run_allowed: bool = True
    call_tries: int = 4
    call_backoff_seconds: float = 1.0
    max_attempts: int = 5
    settle_seconds: float = 30.0
    control_table: str = ""


class Outage(StrEnum):
    """What the circuit breaker says of the workspace as a whole."""

    NONE = "none"
    #: Calls go one by one, or none was ever answered: a row that gives up is enough to stop.
    SUSPECTED = "suspected"
    #: The single calls had no answer either.
    CERTAIN = "certain"


@dataclass(frozen=True)
class Facts:
    """What the dispatch has seen beside the row that is decided.

    Attributes:
        throttle_pause: Seconds that the rate limiter now keeps the call's endpoint waiting.
        seconds_left: Seconds until the deadline.
        outage: What the circuit breaker says of the workspace.
        proven: Whether the same refusal of the same job was found to be the row's fault.
        known: What the ledger knows of each run that was found, by run id, the newest first.
    """

    throttle_pause: float = 0.0
    seconds_left: float = float("inf")
    outage: Outage = Outage.NONE
    proven: bool = False
    known: Mapping[int, Sequence[KnownRun]] = field(default_factory=dict)


@dataclass(frozen=True)
class Witnesses:
    """What the calls of other rows say about refusals that no later answer has decided.

    Attributes:
        all_refused: Whether the workspace refuses all calls.
        started: The jobs of which a start succeeded.
        read: The jobs of which a look-up succeeded.
        refused_rows: How many rows were refused since a call last succeeded.
        refused_jobs: The jobs of these rows.
    """

    all_refused: bool = False
    started: Collection[int] = frozenset()
    read: Collection[int] = frozenset()
    refused_rows: int = 0
    refused_jobs: Collection[int] = frozenset()


@dataclass(frozen=True)
class _Whose:
    """What the ledger knows of a run that a row found: ``other`` names whose work it is, empty when it is the row's.

    ``repair_ids`` are the repairs that are others' work. ``unresolved`` when one of others may be under way unseen.
    """

    other: str = ""
    repair_ids: frozenset[int] = frozenset()
    unresolved: bool = False


# ---- the first step, and the step after an answer


def first_step(entry: Entry) -> Step:
    """What an entry needs first, as it stands in the ledger."""
    unresolved = has_intent(entry)
    if unresolved and entry.correction:
        return FindRun() if entry.starts_new_run else LookUp()
    if unresolved and not entry.waiting and entry.starts_new_run:
        return FindRun()
    if entry.starts_new_run:
        return StartRun()
    return LookUp()


def decide(work: Work, answer: Answer, facts: Facts, policy: Policy) -> Decision:
    """What follows from an answer; ``work`` has its own counts already moved by it."""
    decision = _decide(work, answer, facts, policy)
    if isinstance(decision, Quarantine):
        return _refuse(work, answer, decision, facts)
    return decision


def refusal_at_stake(work: Work, error: ProcessManagerError | None) -> Refused | None:
    """The refusal for which the row would be marked FAILED now, if there is one."""
    return error if isinstance(error, Refused) else work.refused.get(Call.RUN_NOW)


def _decide(work: Work, answer: Answer, facts: Facts, policy: Policy) -> Decision:
    entry, value = work.entry, answer.value
    if answer.error is not None:
        return _after_error(work, answer.error, facts, policy)
    if isinstance(value, RunSnapshot):
        known = _whose(entry, policy.control_table, facts.known.get(value.run_id, []))
        return after_look_up(entry, value, policy, known)
    if isinstance(value, list):
        known_runs = [item for run_id in value for item in facts.known.get(run_id, [])]
        return after_find(entry, _not_others(entry, policy.control_table, value, known_runs), _words(work))
    if not isinstance(value, int):
        return after_find(entry, None, _words(work))
    if work.call is Call.REPAIR:
        return Accept(entry.previous_run_id or 0, value, f"repair {value} of run {entry.previous_run_id}")
    why = work.step.reason if isinstance(work.step, StartRun) else ""
    return Accept(value, None, f"new run {value}" + (f": {why}" if why else ""))


def _words(work: Work) -> str:
    """What the workspace said to run-now before it is asked which runs there are."""
    refused = work.refused.get(Call.RUN_NOW) if work.call is Call.LIST_RUNS else None
    return "" if refused is None else str(refused)


def _after_error(work: Work, error: ProcessManagerError, facts: Facts, policy: Policy) -> Decision:
    call = work.call
    if isinstance(error, Throttled) and facts.throttle_pause > min(_LONGEST_THROTTLE, facts.seconds_left):
        return Defer(f"{call.value}: {error}", min(facts.throttle_pause, _LONGEST_PAUSE))
    tries, refusals = work.unanswered[call], work.refusals[call]
    decision = after_failure(work.entry, call, error, tries, refusals, policy, _words(work))
    if isinstance(error, WorkspaceUnavailable):
        gives_up = isinstance(decision, Defer)
        if facts.outage is Outage.CERTAIN or (gives_up and facts.outage is Outage.SUSPECTED):
            return Stop(error)
    return decision


def _refuse(work: Work, answer: Answer, decision: Quarantine, facts: Facts) -> Decision:
    """A refusal is final at once only where the same one was proven, or where the workspace refused nothing."""
    refusal = refusal_at_stake(work, answer.error)
    if refusal is None:
        return decision
    if facts.proven:
        return Quarantine(decision.reason, _both(decision.rule, AS_PROVEN))
    return Hold(decision.reason, refusal, is_about_starting(work, refusal), decision.rule)


def is_about_starting(work: Work, error: ProcessManagerError) -> bool:
    """Whether the answer is one to a call that starts something, also where a search came after it."""
    return work.changes_workspace or any(error is work.refused.get(call) for call in (Call.RUN_NOW, Call.REPAIR))


# ---- after a look-up or a search


def _newer_repair(entry: Entry, run: RunSnapshot, others: Collection[int]) -> int | None:
    """The repair that came after the one our recorded intent named, if the history shows one and it may be ours.

    ``others`` are known to be other rows'. After a clean refusal it is somebody else's, and counts for what the run is
    now, as any earlier repair does.
    """
    if not (has_intent(entry) and is_in_doubt(entry)):
        return None
    if entry.sent_repair_id is None:
        later = run.repair_ids
    elif entry.sent_repair_id in run.repair_ids:
        later = run.repair_ids[run.repair_ids.index(entry.sent_repair_id) + 1 :]
    else:
        later = ()
    return next((repair_id for repair_id in reversed(later) if repair_id not in others), None)


def _history_is_stale(entry: Entry, run: RunSnapshot) -> bool:
    known = entry.sent_repair_id if has_intent(entry) else None
    return known is not None and known not in run.repair_ids


def after_look_up(entry: Entry, run: RunSnapshot, policy: Policy, known: _Whose = _Whose()) -> Decision:
    """Decide a repair row by the run it had, and by whose work that run is."""
    newer = _newer_repair(entry, run, known.repair_ids)
    if entry.correction:
        stale = _history_is_stale(entry, run)
        return _after_former_look_up(entry, run, newer, stale=stale, seconds=policy.settle_seconds)
    if newer is not None:
        return Adopt(run.run_id, newer, f"repair {newer} was already started; run is {run.words}")
    if _history_is_stale(entry, run):
        return Defer(
            f"the history of run {run.run_id} does not yet show repair {entry.sent_repair_id}", policy.settle_seconds
        )
    if known.other and (run.standing is Standing.ACTIVE or (known.unresolved and not is_in_doubt(entry))):
        return _under_way_for_another(run, known.other, _SETTLINGS * policy.settle_seconds)
    if run.standing is Standing.ACTIVE:
        return Adopt(run.run_id, run.latest_repair_id, f"run {run.run_id} is already under way ({run.words})")
    if not entry.waiting:
        return Withdraw(f"the row left WAITING while its repair was unresolved; run {run.run_id} is {run.words}")
    if run.standing is Standing.SUCCEEDED and known.other:
        return _without_run(f"run {run.run_id} succeeded for {known.other}, not for this row", policy)
    if run.standing is Standing.SUCCEEDED:
        reason = f"run {run.run_id} already succeeded; nothing to repair"
        return Adopt(run.run_id, run.latest_repair_id, reason, succeeded=True)
    if run.standing is Standing.NEVER_RAN:
        return _without_run(f"run {run.run_id} never ran ({run.words})", policy)
    return RepairRun(run.latest_repair_id)


def _without_run(what: str, policy: Policy) -> Decision:
    if policy.fresh_run_allowed:
        return StartRun(f"{what}; starting a fresh run")
    return Quarantine(f"{what}, and a fresh run is not allowed (PM_MISSING_RUN=fail)", _NO_FRESH_RUN)


def after_find(entry: Entry, run_id: int | None, refusal: str = "") -> Decision:
    """Decide by the search for a run whose answer was lost; ``run_id`` is no other row's.

    ``refusal`` is what the workspace said to run-now since.
    """
    if entry.correction:
        return _after_former_find(entry, run_id)
    if run_id is not None and run_id not in entry.earlier_run_ids:
        return Adopt(run_id, None, f"run {run_id} has this row's parameters; the answer to its start was lost")
    if not entry.waiting:
        return Withdraw("the row left WAITING before its run was confirmed, and the job shows no run for it")
    words = f": {refusal}" if refusal else ""
    return Quarantine(f"run-now was refused{words}; an earlier answer was lost, and the job shows no run for this row")


# ---- after a call that failed


def after_failure(
    entry: Entry, call: Call, error: ProcessManagerError, tries: int, refusals: int, policy: Policy, refusal: str = ""
) -> Decision:
    """Decide after a call that failed.

    ``tries`` counts the attempts of this call without a usable answer; ``refusals`` the clean refusals of this call in
    this dispatch, this one included; ``refusal`` is what the workspace said to run-now before this call.
    """
    if isinstance(error, AuthenticationFailed):
        return Stop(error)
    if isinstance(error, Throttled):
        return Again(0.0)
    if isinstance(error, WorkspaceUnavailable):
        return _after_no_answer(call, error, tries, policy)
    if isinstance(error, Refused):
        return _after_refusal(entry, call, error, refusals, policy, refusal)
    return Stop(error)


def _after_no_answer(call: Call, error: WorkspaceUnavailable, tries: int, policy: Policy) -> Decision:
    pause = _doubled(policy.call_backoff_seconds, tries - 1)
    if tries >= policy.call_tries:
        return Defer(f"{call.value}: {error}", max(pause, policy.settle_seconds if error.maybe_applied else 0.0))
    if call is Call.REPAIR and error.maybe_applied:
        return LookUp(pause)
    return Again(pause)


def _after_refusal(entry: Entry, call: Call, error: Refused, refusals: int, policy: Policy, refusal: str) -> Decision:
    reason = f"{call.value} was refused: {error}"
    if refusal:
        reason = f"{reason}; before that, run-now was refused: {refusal}"
    if call is Call.GET_RUN and error.gone:
        return _after_gone(entry, error, policy)
    if call is Call.REPAIR:
        return _after_refused_repair(entry, error, reason, refusals, policy)
    if error.kind is Kind.FORBIDDEN and refusals <= 1:
        # A right that one holds is denied now and then, and granted a moment later.
        return Again(policy.call_backoff_seconds)
    if is_in_doubt(entry):
        return _refused_in_doubt(entry, call, error, reason, policy)
    if error.status == _CONFLICT:
        return _count(entry, reason, policy)
    if error.kind is Kind.UNKNOWN:
        return _count_unknown(entry, reason, policy)
    return Quarantine(reason)


def _after_gone(entry: Entry, error: Refused, policy: Policy) -> Decision:
    what = f"run {entry.previous_run_id} does not exist any more ({clause(str(error))})"
    if entry.correction:
        return _unresolvable(entry, what)
    if not entry.waiting:
        return Withdraw(f"the row left WAITING while its repair was unresolved; {what}")
    if is_in_doubt(entry):
        return Quarantine(f"{what}, and it is not known whether its repair was started, because the answer was lost")
    return _without_run(what, policy)


def _refused_in_doubt(entry: Entry, call: Call, error: Refused, reason: str, policy: Policy) -> Decision:
    """A refusal while a call may have taken effect unseen: the row is not refused before that is known."""
    last = entry.attempts + 1 >= policy.max_attempts
    if entry.correction and (last or error.gone):
        return _unresolvable(entry, reason)
    passing = error.status == _CONFLICT or error.kind is Kind.UNKNOWN
    if call is Call.RUN_NOW and (last or not passing):
        return FindRun()
    pause = _doubled(policy.settle_seconds, entry.attempts)
    return Defer(f"{reason}; an earlier call may have taken effect, so the row is tried again", pause, counts=True)


def _after_refused_repair(entry: Entry, error: Refused, reason: str, refusals: int, policy: Policy) -> Decision:
    """A refused repair may mean that one is running: read again, leave it to settle, and only then give up."""
    if refusals <= 1:
        return LookUp(policy.call_backoff_seconds)
    if is_in_doubt(entry):
        # What refuses it may be our own repair, which a run that is read too early does not show yet.
        return _count(entry, f"{reason}; the answer to an earlier repair was lost", policy)
    if error.kind is Kind.UNKNOWN:
        return _count_unknown(entry, reason, policy)
    if entry.attempts >= 1:
        return Quarantine(reason)
    return Defer(reason, policy.settle_seconds, counts=True)


def _count_unknown(entry: Entry, reason: str, policy: Policy) -> Decision:
    """A refusal of an unknown code is never final the first time, whatever the settings say."""
    return _count(entry, reason, replace(policy, max_attempts=max(policy.max_attempts, 2)))


def _count(entry: Entry, reason: str, policy: Policy) -> Decision:
    if entry.attempts + 1 >= policy.max_attempts:
        return Quarantine(f"{reason} ({entry.attempts + 1} attempts)")
    return Defer(reason, _doubled(policy.settle_seconds, entry.attempts), counts=True)


def _doubled(seconds: float, times: int) -> float:
    """A setting's pause after so many doublings: at most an hour, unless the setting itself is longer."""
    return max(seconds, min(seconds * 2.0 ** min(times, _DOUBLINGS), _LONGEST_PAUSE))


# ---- whose work a run is, and what became of the call for a row that was corrected since


def _whose(entry: Entry, control_table: str, known: Sequence[KnownRun]) -> _Whose:
    """Whose work a run is; ``known`` is what the ledger says of it, the newest first."""
    others = [item for item in known if item.entry_id != entry.entry_id]
    if not others:
        return _Whose()
    newest = others[0]
    repairs = frozenset(item.repair_id for item in others if item.repair_id is not None)
    same_row = (newest.control_table, newest.run_id) == (control_table, entry.run_id)
    if same_row and not newest.superseded:
        return _Whose(repair_ids=repairs)
    former = f"generation {newest.generation} of this row, from before it was corrected"
    return _Whose(former if same_row else newest.row, repairs, newest.unresolved)


def _not_others(entry: Entry, control_table: str, found: Sequence[int], known: Sequence[KnownRun]) -> int | None:
    """The first of the runs that were found which is neither another row's nor an earlier generation's."""
    taken = {
        item.databricks_run_id for item in known if (item.control_table, item.run_id) != (control_table, entry.run_id)
    }
    return next((run_id for run_id in found if run_id not in taken and run_id not in entry.earlier_run_ids), None)


def difference(entry: Entry, now: WaitingJob) -> str:
    """What the row asks for now in place of what the entry has, for people; empty when it is the same."""
    found = []
    if now.job_id != entry.job_id:
        found.append(f"job {now.job_id} instead of {entry.job_id or 'none that can be read'}")
    if now.previous_run_id != entry.previous_run_id:
        found.append(f"earlier run {_shown(now.previous_run_id)} instead of {_shown(entry.previous_run_id)}")
    found += _other_parameters(entry.parameters, now.parameters)
    return ", ".join(found)


def _other_parameters(sent: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    names = sorted({*sent, *now})
    return [
        f"{name} {_shown(now.get(name))} instead of {_shown(sent.get(name))}"
        for name in names
        if sent.get(name) != now.get(name)
    ]


def _shown(value: object) -> str:
    text = "none" if value is None else repr(value)
    return text if len(text) <= _SHOWN_LIMIT else f"{text[: _SHOWN_LIMIT - 3]}..."


def correction(
    entry: Entry, now: WaitingJob | None, refused: RefusedRow | None, *, written: bool
) -> tuple[str, WaitingJob | None]:
    """How a row was corrected, for people, and what it asks for now; nothing where it says the same.

    ``written`` tells whether the table's own row was written since the claim: a view may show another parameter each
    time it is read, such as an age, and that is no correction. A row that the view does not show says nothing.
    """
    if now is not None:
        now = now if written else replace(now, parameters=entry.parameters)
        return difference(entry, now), now
    if refused is not None and written and entry.job_id and not refused.row.unreadable:
        return f"it cannot be read any more: {refused.reason}", None
    return "", None


def names_only_our_run(entry: Entry, now: WaitingJob | None, run_id: int) -> bool:
    """Whether the row differs only by naming the run that our own call started: that is news, and no correction."""
    if now is None or now.previous_run_id != run_id:
        return False
    return not difference(replace(entry, previous_run_id=run_id), now)


def _after_former_find(entry: Entry, run_id: int | None) -> Decision:
    """Decide a corrected row by the search for the run of what was sent before."""
    if run_id is None:
        return Supersede(f"the row was corrected ({entry.correction}); the call sent before that started no run")
    if names_only_our_run(entry, entry.asks, run_id):
        return Adopt(run_id, None, f"run {run_id} has this row's parameters; the answer to its start was lost")
    return Supersede(f"run {run_id} was started before the row was corrected ({entry.correction})", run_id)


def _after_former_look_up(
    entry: Entry, run: RunSnapshot, newer: int | None, *, stale: bool, seconds: float
) -> Decision:
    """Decide a corrected row by the run whose repair was sent before; ``newer`` is that repair, if it is there."""
    if newer is not None:
        reason = f"repair {newer} of run {run.run_id} was started before the row was corrected ({entry.correction})"
        return Supersede(reason, run.run_id, newer)
    if stale:
        return Defer(
            f"the row was corrected ({entry.correction}); whether the call sent before that started a repair of"
            f" run {run.run_id} cannot be seen yet",
            seconds,
        )
    return Supersede(
        f"the row was corrected ({entry.correction}); the call sent before that started no repair of run {run.run_id}"
    )


def _unresolvable(entry: Entry, why: str) -> Decision:
    """A corrected row of whose former call nothing can be found out any more."""
    return Supersede(
        f"the row was corrected ({entry.correction}); whether the call sent before that started anything cannot be"
        f" found out: {why}"
    )


def _under_way_for_another(run: RunSnapshot, other: str, seconds: float) -> Decision:
    """A row whose earlier run works for another row: it is decided when that has ended."""
    return Defer(
        f"run {run.run_id} is under way for {other} ({run.words}); this row is decided once that run has ended", seconds
    )


def of_another_job(entry: Entry, run_job_id: int | None) -> str:
    """What is told of a run whose job is not the row's, empty when it is."""
    if run_job_id is None or run_job_id == entry.job_id:
        return ""
    return f"the run is of job {run_job_id}, the row names job {entry.job_id}"


def runs_to_know(work: Work, answer: Answer) -> list[int]:
    """The runs that an answer may lead to taking for the row's own: whose they are has to be known."""
    value = answer.value
    if isinstance(value, list):
        return value
    if not isinstance(value, RunSnapshot):
        return []
    alive = value.standing in (Standing.ACTIVE, Standing.SUCCEEDED)
    return [value.run_id] if alive or has_intent(work.entry) else []


# ---- a refusal that was held


@dataclass(frozen=True)
class Held:
    """A row whose refusal is held until it is found out whether it is the row's fault."""

    work: Work
    hold: Hold

    @property
    def job_id(self) -> int:
        """The row's job."""
        return self.work.entry.job_id

    @property
    def about_the_job(self) -> bool:
        """Whether it would be true for every row of the job."""
        refusal = self.hold.refusal
        return refusal.kind is Kind.FORBIDDEN or refusal.job_absent

    def final(self, rule: str) -> Quarantine:
        """The refusal made final by a rule."""
        return Quarantine(self.hold.reason, _both(self.hold.rule, rule))


def names_the_row(error: ProcessManagerError) -> bool:
    """Whether a refusal can only be about the row; any other may be about us, or the workspace."""
    return isinstance(error, Refused) and error.kind in (Kind.NAMED, Kind.GONE)


def after_witness(held: Held, job_id: int, policy: Policy) -> Quarantine | Defer:
    """Decide a held refusal by a call of ``job_id`` that went well after it."""
    if held.about_the_job and held.job_id == job_id:
        return _unblamed(held, _CONTRADICTED, policy)
    return held.final(BY_LATER_SUCCESS)


def without_witness(held: Held, witnesses: Witnesses, policy: Policy, *, blame: bool) -> Quarantine | Defer:
    """Decide a held refusal at the end of sending; without ``blame`` nothing is held against any row."""
    if not blame or witnesses.all_refused:
        return _put_off(held, policy)
    started, read, jobs = set(witnesses.started), set(witnesses.read), set(witnesses.refused_jobs)
    if names_the_row(held.hold.refusal):
        near = bool(started) and witnesses.refused_rows < SUSPICIOUS_ROWS
        return held.final(BY_NAME) if near or len(jobs) < SUSPICIOUS_JOBS else _put_off(held, policy)
    others = started if held.hold.starting else started | read
    if held.about_the_job:
        others = set() if held.job_id in others else others
    near = witnesses.refused_rows <= _NEAR_ROWS or (len(jobs) == 1 and not others & jobs)
    return held.final(BY_EARLIER_SUCCESS) if others and near else _unblamed(held, _NO_WITNESS, policy)


def refused_and_not_called_again(work: Work, policy: Policy, *, all_refused: bool) -> Defer:
    """Decide a row at the end of sending whose last call was refused and that was to be called again."""
    newest = next(reversed(work.refused.values()))
    why = _ALL_REFUSED if all_refused else _NO_WITNESS
    return Defer(f"{work.call.value} was refused: {newest}; not held against the row: {why}", policy.settle_seconds)


def _unblamed(held: Held, why: str, policy: Policy) -> Defer:
    """Back with a growing pause: it may be the row, and nobody can tell."""
    pause = _doubled(policy.settle_seconds, held.work.entry.attempts)
    return Defer(f"{held.hold.reason}; not held against the row: {why}", pause, counts=True)


def _put_off(held: Held, policy: Policy) -> Defer:
    return Defer(f"{held.hold.reason}; not held against the row: {_ALL_REFUSED}", policy.settle_seconds)


def _both(rule: str, more: str) -> str:
    return "; ".join(each for each in (rule, more) if each)


# ---- what a decision means for the ledger


@overload
def outcome_of(work: Work, decision: Quarantine | Defer | Withdraw) -> RowOutcome: ...


@overload
def outcome_of(work: Work, decision: Decision) -> RowOutcome | None: ...


def outcome_of(work: Work, decision: Decision) -> RowOutcome | None:
    """The outcome that a decision means, with what the row's owner has to know beside it; None when the row goes on."""
    entry = work.entry
    if isinstance(decision, Accept):
        return _noted(work, RowOutcome(entry, Outcome.ACCEPTED, decision.reason, decision.run_id, decision.repair_id))
    if isinstance(decision, Adopt):
        taken = RowOutcome(entry, Outcome.ADOPTED, decision.reason, decision.run_id, decision.repair_id)
        return _noted(work, replace(taken, succeeded=decision.succeeded))
    if isinstance(decision, Quarantine):
        return _noted(work, RowOutcome(entry, Outcome.QUARANTINED, decision.reason, rule=decision.rule))
    if isinstance(decision, Defer):
        seconds, counts = decision.seconds, decision.counts
        return RowOutcome(entry, Outcome.DEFERRED, decision.reason, defer_seconds=seconds, counts_as_attempt=counts)
    if isinstance(decision, Withdraw):
        return RowOutcome(entry, Outcome.WITHDRAWN, decision.reason)
    if isinstance(decision, Supersede):
        run_id, repair_id = decision.run_id, decision.repair_id
        return RowOutcome(entry, Outcome.WITHDRAWN, decision.reason, run_id, repair_id, superseded=True)
    return None


def _noted(work: Work, outcome: RowOutcome) -> RowOutcome:
    seen = work.seen if work.seen is not None and work.seen.run_id == outcome.run_id else None
    more = [of_another_job(work.entry, seen.job_id) if seen else "", work.entry.note]
    return replace(outcome, reason="; ".join(text for text in (outcome.reason, *more) if text))


def state_while_going_on(entry: Entry, decision: Decision, error: ProcessManagerError | None) -> EntryState | None:
    """The state to write for a row that goes on, is held, or stops the dispatch; None leaves it as it is.

    A refused call was not made, so its claim lapses if the dispatcher dies. A call that is made again at once keeps its
    intent.
    """
    if isinstance(decision, Hold) or (isinstance(decision, Again) and isinstance(error, Refused)):
        return released(entry, EntryState.CLAIMED)
    if isinstance(decision, Stop) and had_no_effect(decision.error):
        return released(entry, EntryState.CLAIMED)
    return None


_STATE_AFTER = {
    Outcome.ACCEPTED: EntryState.ACCEPTED,
    Outcome.ADOPTED: EntryState.ACCEPTED,
    Outcome.QUARANTINED: EntryState.QUARANTINED,
    Outcome.WITHDRAWN: EntryState.WITHDRAWN,
}


def change_for(outcome: RowOutcome, call: Event | None, page_url: str | None, *, ambiguous: bool) -> Change:
    """What the ledger is to record for an outcome, with its reason and, for a refusal, the rule that made it final.

    ``call`` is the call that led to it, None when that is recorded already. ``ambiguous`` when its answer was lost.
    """
    detail = f"{outcome.reason} [final: {outcome.rule}]" if outcome.rule else outcome.reason
    told = Event("superseded" if outcome.superseded else outcome.outcome.value, detail)
    deferred = outcome.outcome is Outcome.DEFERRED
    state = released(outcome.entry, EntryState.DEFERRED) if deferred else _STATE_AFTER[outcome.outcome]
    return Change(
        entry_id=outcome.entry.entry_id,
        events=(told,) if call is None else (call, told),
        state=state,
        outcome=outcome.outcome,
        succeeded=outcome.succeeded,
        accepted_run_id=outcome.run_id,
        accepted_repair_id=outcome.repair_id,
        page_url=page_url,
        reason=outcome.reason,
        defer_seconds=outcome.defer_seconds if deferred else None,
        counts_as_attempt=outcome.counts_as_attempt,
        ambiguous=ambiguous,
        rule=outcome.rule or None,
        superseded=outcome.superseded,
    )
