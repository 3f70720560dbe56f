"""What must hold after each step, read off the control table's history, the workspace's effects and the ledger.

The invariants, by their numbers in the design. No rule of ``pm_dagster.dispatch.rules`` may be used here: the product
must not judge itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from pm_dagster.dispatch.model import Call, Entry, EntryState
from pm_dagster_tests.model.harness import FILE_NAME, SETTINGS, EntryNow, Harness, RowNow, RunNow

#: The ledger says of these that something is still to be done.
UNRESOLVED = ("SENDING", "ACCEPTED")
_WAITING = "WAITING"


class Breach(AssertionError):
    """An invariant of the design, by its number, does not hold."""

    def __init__(self, invariant: int, what: str) -> None:
        super().__init__(f"invariant {invariant}: {what}")
        self.invariant = invariant


@dataclass
class Attempt:
    """One execution of a run, by the steps of the machine in which it was first seen active and first seen over."""

    began: int
    over: int | None = None


class Oracle:
    """Keeps the history of one harness. ``steps`` counts what was observed."""

    def __init__(self, harness: Harness) -> None:
        self._harness = harness
        self.steps = 0
        self.breaches: list[Breach] = []
        self.rows: dict[int, RowNow] = {}
        #: The steps at which each row began to wait.
        self.waits: dict[int, list[int]] = defaultdict(list)
        self._attempts: dict[tuple[int, int], Attempt] = {}
        self._effects: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
        #: The calls for a row and generation that may have been made without anybody's knowing.
        self._doubts: dict[tuple[int, int], set[Call]] = defaultdict(set)
        #: When each entry was first seen, and how it was last.
        self._entries: dict[int, int] = {}
        self._ledger: dict[int, EntryNow] = {}
        self._runs: dict[int, RunNow] = {}
        #: Rows that the workspace said no to, and by negative numbers the runs.
        self._refused: set[int] = set()

    # ---- told by the dispatchers, in their own threads

    def asked(self, moment: float) -> None:
        """9: nothing is asked of the workspace after the deadline."""
        if moment >= SETTINGS.deadline_seconds:
            self._broken(9, f"a call was made {moment:.0f} s after the dispatch began")

    def claimed(self, entries: Sequence[Entry]) -> None:
        """1: what is taken is what the row asks for now."""
        rows = self._harness.rows()
        for entry in entries:
            row = rows[entry.run_id]
            if (entry.job_id, entry.previous_run_id) != (row.job_id, row.previous_run_id):
                self._broken(1, f"row {entry.run_id} asks for {row}, but was taken as {entry}")

    def rescued(self, entries: Sequence[Entry]) -> None:
        """What was left in SENDING may have been sent."""
        for entry in entries:
            if entry.state is EntryState.SENDING:
                self._doubts[entry.run_id, entry.generation].add(_call_of(entry))

    def granted(self, entry: Entry, call: Call) -> None:
        """1: nothing is started that nobody asks for, unless the same call may have been made already."""
        row = self._harness.rows().get(entry.run_id)
        if (row is None or row.status != _WAITING) and call not in self._doubts[entry.run_id, entry.generation]:
            self._broken(1, f"{call} for row {entry.run_id}, which is {row and row.status}")

    def refused(self, *, row: int | None = None, run_id: int | None = None) -> None:
        """2: only what was refused may be FAILED."""
        self._refused.add(-(run_id or 0) if row is None else row)

    def before_call(self) -> None:
        """What is there before."""
        self._runs = self._harness.runs()

    def after_call(self, row: int, generation: int, call: Call, *, lost: bool) -> None:
        """1: at most one effect for a row and generation. 6: its parameters arrive as they are."""
        if lost:
            self._doubts[row, generation].add(call)
        for run_id, run in self._harness.runs().items():
            known = self._runs.get(run_id)
            if known is not None and run.attempts == known.attempts:
                continue
            effects = self._effects[row, generation]
            effects.append((run_id, run.attempts))
            if len(effects) > 1:
                self._broken(1, f"row {row}, generation {generation}: {effects} were started for it")
            if run.parameters.get("FILE_NAME") != FILE_NAME:
                self._broken(6, f"run {run_id} has the parameters {run.parameters}")

    # ---- after each step

    def observe(self, *, dispatcher: bool, identity: int | None = None) -> None:
        """Look at everything; ``dispatcher`` when it was a dispatcher's step. Raises the first Breach."""
        self.steps += 1
        self._see_runs(self._harness.runs())
        self._see_entries(self._harness.ledger(), identity)
        rows = self._harness.rows()
        for number, row in rows.items():
            before = self.rows.get(number)
            if row.status == _WAITING and (before is None or _asks(before) != _asks(row)):
                self.waits[number].append(self.steps)
            if dispatcher and before is not None and row.status != before.status:
                self._see_written(number, before, row)
        self.rows = rows
        self.raise_breaches()

    def check_error(self, error: BaseException) -> None:
        """4: nothing but a fault of an outside system ends a dispatch."""
        self._broken(4, f"a dispatch ended with {error!r}")

    def check_secrets(self) -> None:
        """5: no word that is kept holds the secret."""
        for text in self._harness.texts():
            if self._harness.secret in text:
                self._broken(5, f"a secret is kept in: {text}")
        self.raise_breaches()

    def settled(self) -> bool:
        """Nothing waits, and nothing is unresolved."""
        return not self._waiting() and not self._unresolved()

    def check_settled(self) -> None:
        """2 and 4: so it is in the end."""
        for number in self._waiting():
            entries = [entry for entry in self._harness.ledger() if entry.row == number and entry.open]
            self._broken(2, f"row {number} still waits; {entries}")
        for entry in self._unresolved():
            self._broken(2, f"{entry} is never resolved")
        self.raise_breaches()

    def raise_breaches(self) -> None:
        """The first thing that was noticed."""
        if self.breaches:
            raise self.breaches[0]

    # ---- inside

    def _waiting(self) -> list[int]:
        return [number for number, row in self._harness.rows().items() if row.status == _WAITING]

    def _unresolved(self) -> list[EntryNow]:
        return [entry for entry in self._harness.ledger() if entry.open and entry.state in UNRESOLVED]

    def _broken(self, invariant: int, what: str) -> None:
        self.breaches.append(Breach(invariant, what))

    def _see_runs(self, runs: dict[int, RunNow]) -> None:
        for run_id, run in runs.items():
            for number in range(1, run.attempts + 1):
                attempt = self._attempts.setdefault((run_id, number), Attempt(self.steps))
                if attempt.over is None and (number < run.attempts or not run.active):
                    attempt.over = self.steps
        for (run_id, _), attempt in self._attempts.items():
            if run_id not in runs and attempt.over is None:
                attempt.over = self.steps

    def _see_entries(self, entries: Sequence[EntryNow], identity: int | None) -> None:
        """1: nobody writes what somebody else owns, and no generation comes before the row asks again."""
        rows = self._harness.rows()
        for entry in entries:
            self._entries.setdefault(entry.entry_id, self.steps)
            before = self._ledger.get(entry.entry_id, entry)
            if before != entry and before.owner == entry.owner != identity:
                self._broken(1, f"dispatcher {identity} wrote what it does not own: {before} became {entry}")
            self._ledger[entry.entry_id] = entry
            now, then = rows.get(entry.row), self.rows.get(entry.row)
            anew = now is not None and now.status == _WAITING and (then is None or _asks(then) != _asks(now))
            waits = len(self.waits[entry.row]) + anew
            if entry.generation > waits:
                self._broken(1, f"{entry}: the row asked only {waits} times")

    def _see_written(self, number: int, before: RowNow, row: RowNow) -> None:
        """3: a dispatcher writes only rows that wait. 2: what it writes is so."""
        if before.status != _WAITING:
            self._broken(3, f"row {number} was set from {before.status} to {row.status}")
            return
        entry = max((e for e in self._harness.ledger() if e.row == number), key=lambda e: e.generation)
        if not row.message:
            self._broken(2, f"row {number} became {row.status} without a reason")
        if row.status == "FAILED":
            self._see_refused(number, before, entry)
        else:
            self._see_scheduled(number, entry, before, row)

    def _see_refused(self, number: int, before: RowNow, entry: EntryNow) -> None:
        never_to_run = before.job_id is None or "PM_MISSING_RUN=fail" in entry.reason
        if not never_to_run and not {number, -(before.previous_run_id or 0)} & self._refused:
            self._broken(2, f"row {number} is FAILED ({entry.reason}), but the Jobs API never refused it")
        for effect in self._effects[number, entry.generation]:
            if self._attempts[effect].over is None:
                self._broken(2, f"row {number} is FAILED ({entry.reason}), but run {effect[0]} is under way for it")

    def _see_scheduled(self, number: int, entry: EntryNow, before: RowNow, row: RowNow) -> None:
        """The run that stands for the row was under way at some time since the work was taken, or had succeeded."""
        run_id = entry.accepted_run_id
        since = self._entries[entry.entry_id]
        run = self._harness.runs().get(run_id or 0)
        if entry.branch == "new" and run is not None and run.job_id != before.job_id:
            self._broken(2, f"row {number} asks for job {before.job_id}, but {run} stands for it")
        for other in self._harness.ledger():
            if entry.branch == other.branch == "new" and other.accepted_run_id == run_id and other.row != number:
                self._broken(2, f"run {run_id} stands for row {number} and for row {other.row}")
        if entry.branch == "new" and before.previous_run_id == run_id:
            # The row knows the run already: it was given back since.
            since = self.waits[number][-1]
        attempts = {key: attempt for key, attempt in self._attempts.items() if key[0] == run_id}
        alive = any(attempt.over is None or attempt.over >= since for attempt in attempts.values())
        doubts = self._doubts[number, entry.generation]
        ours = any(key[0] == number and run_id in dict(effects) for key, effects in self._effects.items())
        excused = Call.REPAIR in doubts or (Call.RUN_NOW in doubts and not ours)
        if not alive and not excused and row.status != "SUCCESS":
            self._broken(2, f"row {number} is {row.status} ({entry.reason}), but that run was over before: {attempts}")


def _asks(row: RowNow) -> tuple[object, ...]:
    """What a row asks for: another of these is asked for anew, also while it waits."""
    return row.status, row.job_id, row.previous_run_id


def _call_of(entry: Entry) -> Call:
    return Call.RUN_NOW if entry.starts_new_run else Call.REPAIR
