"""Rows that their owner corrected while a call for what they said before was under way, and runs that are others' work.

Put here: what is different, whose a run is, and what becomes of the former call. Keep out: reading rows and ledger, and
what to do for a row that is as it was (``decisions``).

What was sent is resolved and recorded, the control table is not written, and the row is then taken as it is now, as a
new generation: a row never says SCHEDULED with a value while a run with another value is what stands for it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from pm_dagster.dispatch.decisions import Adopt, Decision, Defer, Supersede
from pm_dagster.dispatch.ledger_entry import Entry
from pm_dagster.dispatch.run_state import RunSnapshot
from pm_dagster.dispatch.waiting_job import RefusedRow, WaitingJob

_SHOWN_LIMIT = 60


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class Whose:
    """What the ledger knows of a run that a row found: ``other`` names whose work it is, empty when it is the row's.

    ``repair_ids`` are the repairs that are others' work. ``unresolved`` when one of others may be under way unseen.
    """

    other: str = ""
    repair_ids: frozenset[int] = frozenset()
    unresolved: bool = False


def whose(entry: Entry, control_table: str, known: Sequence[KnownRun]) -> Whose:
    """Whose work a run is; ``known`` is what the ledger says of it, the newest first."""
    others = [item for item in known if item.entry_id != entry.entry_id]
    if not others:
        return Whose()
    newest = others[0]
    repairs = frozenset(item.repair_id for item in others if item.repair_id is not None)
    same_row = (newest.control_table, newest.run_id) == (control_table, entry.run_id)
    if same_row and not newest.superseded:
        return Whose(repair_ids=repairs)
    former = f"generation {newest.generation} of this row, from before it was corrected"
    return Whose(former if same_row else newest.row, repairs, newest.unresolved)


def not_others(entry: Entry, control_table: str, found: Sequence[int], known: Sequence[KnownRun]) -> int | None:
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


def after_former_find(entry: Entry, run_id: int | None) -> Decision:
    """Decide a corrected row by the search for the run of what was sent before."""
    if run_id is None:
        return Supersede(f"the row was corrected ({entry.correction}); what was sent before started no run")
    if names_only_our_run(entry, entry.asks, run_id):
        return Adopt(run_id, None, f"run {run_id} carries this row's parameters; its answer had been lost")
    return Supersede(f"run {run_id} was started before the row was corrected ({entry.correction})", run_id)


def after_former_look_up(entry: Entry, run: RunSnapshot, newer: int | None, *, stale: bool, seconds: float) -> Decision:
    """Decide a corrected row by the run whose repair was sent before; ``newer`` is that repair, if it is there."""
    if newer is not None:
        reason = f"repair {newer} of run {run.run_id} was started before the row was corrected ({entry.correction})"
        return Supersede(reason, run.run_id, newer)
    if stale:
        return Defer(
            f"the row was corrected ({entry.correction}); whether what was sent before started a repair of run"
            f" {run.run_id} is not to be seen yet",
            seconds,
        )
    return Supersede(
        f"the row was corrected ({entry.correction}); what was sent before started no repair of run {run.run_id}"
    )


def unresolvable(entry: Entry, why: str) -> Decision:
    """A corrected row of whose former call nothing can be found out any more."""
    return Supersede(
        f"the row was corrected ({entry.correction}); whether what was sent before runs cannot be found out: {why}"
    )


def under_way_for_another(run: RunSnapshot, other: str, seconds: float) -> Decision:
    """A row whose earlier run works for another row: it is decided when that has ended."""
    return Defer(f"run {run.run_id} is under way for {other} ({run.words}); this row is decided when it ended", seconds)


def of_another_job(entry: Entry, run_job_id: int | None) -> str:
    """What is told of a run whose job is not the row's, empty when it is."""
    if run_job_id is None or run_job_id == entry.job_id:
        return ""
    return f"the run is of job {run_job_id}, the row names job {entry.job_id}"


def known_by_run(known: Collection[KnownRun]) -> dict[int, list[KnownRun]]:
    """What is known of each run, in the order given."""
    found: dict[int, list[KnownRun]] = {}
    for item in known:
        found.setdefault(item.databricks_run_id, []).append(item)
    return found
