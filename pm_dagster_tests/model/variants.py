"""Broken dispatches: each is the real one with a single rule taken out, and each breaks an invariant.

Put here: what is taken out, as a substitution in the tests' process. Keep out: the search for the steps that show it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest

from pm_dagster.core import attempts, decisions, dispatch, sending, steps
from pm_dagster.core.attempts import Work
from pm_dagster.core.errors import Refused
from pm_dagster.core.ledger_entry import Entry, EntryState
from pm_dagster.core.ports import DatabricksRuns, Intent
from pm_dagster.core.run_state import RunSnapshot
from pm_dagster.core.waiting_job import RawRow, WaitingJob, sort_rows
from pm_dagster_tests.fakes.control_plane import InMemoryControlPlane, Row
from pm_dagster_tests.fakes.database import Record
from pm_dagster_tests.fakes.records import claimed
from pm_dagster_tests.model.memory_world import LaggingRuns

Patch = pytest.MonkeyPatch


def _another_token_each_time(patch: Patch) -> None:
    call, numbers = attempts._call, itertools.count()

    def send(work: Work, runs: DatabricksRuns) -> object:
        token = f"token {next(numbers)}"
        return call(replace(work, entry=replace(work.entry, idempotency_token=token)), runs)

    patch.setattr(attempts, "_call", send)


def _no_intent(patch: Patch) -> None:
    def intend(self: InMemoryControlPlane, intents: Sequence[Intent]) -> set[int]:
        return {record.entry.entry_id for i in intents for record in self._ours([i.entry.entry_id])}

    patch.setattr(InMemoryControlPlane, "intend", intend)


def _clock_releases_sending(patch: Patch) -> None:
    free, left_over = InMemoryControlPlane._is_free, InMemoryControlPlane._is_left_over

    def is_free(self: InMemoryControlPlane, run_id: object) -> bool:
        record = self.database.newest(run_id)
        lapsed = record is not None and record.entry.state is EntryState.SENDING and self._may_own(record)
        return lapsed or free(self, run_id)

    def is_left_over(self: InMemoryControlPlane, record: Record) -> bool:
        return record.entry.state is not EntryState.SENDING and left_over(self, record)

    patch.setattr(InMemoryControlPlane, "_is_free", is_free)
    patch.setattr(InMemoryControlPlane, "_is_left_over", is_left_over)


def _history_not_compared(patch: Patch) -> None:
    def newer(entry: Entry, run: RunSnapshot) -> int | None:
        del entry, run
        return None

    patch.setattr(decisions, "_newer_repair", newer)


def _generation_too_early(patch: Patch) -> None:
    take = InMemoryControlPlane._take

    def always_new(self: InMemoryControlPlane, wanted: Entry) -> Record:
        record = self.database.newest(wanted.run_id)
        if record is not None:
            record.open = False
        return take(self, wanted)

    patch.setattr(InMemoryControlPlane, "_take", always_new)


def _generation_never(patch: Patch) -> None:
    token = InMemoryControlPlane._token

    def the_first(self: InMemoryControlPlane, wanted: Entry, generation: int) -> str:
        del generation
        return token(self, wanted, 1)

    patch.setattr(InMemoryControlPlane, "_token", the_first)


def _nobody_owns(patch: Patch) -> None:
    def ours(self: InMemoryControlPlane, entry_ids: Sequence[int]) -> list[Record]:
        return [record for record in self._named(entry_ids) if record.open]

    patch.setattr(InMemoryControlPlane, "_ours", ours)


def _rows_as_read(patch: Patch) -> None:
    def claim(self: InMemoryControlPlane, jobs: Sequence[WaitingJob]) -> list[Entry]:
        self._meet("claim")
        wanted = [job for job in jobs if self._waits(job.run_id) and self._is_free(job.run_id)]
        return self._read([self._take(claimed(job)) for job in wanted])

    patch.setattr(InMemoryControlPlane, "claim", claim)


def _unwanted_is_sent(patch: Patch) -> None:
    def may_send(self: InMemoryControlPlane, record: Record, intent: Intent) -> bool:
        del self, intent
        return record.entry.state in (EntryState.CLAIMED, EntryState.SENDING)

    patch.setattr(InMemoryControlPlane, "_may_send", may_send)


def _dead_are_forgotten(patch: Patch) -> None:
    def is_left_over(self: InMemoryControlPlane, record: Record) -> bool:
        del self, record
        return False

    patch.setattr(InMemoryControlPlane, "_is_left_over", is_left_over)


def _failed_in_doubt(patch: Patch) -> None:
    def in_doubt(entry: Entry, call: object, error: object, reason: str, policy: object) -> steps.Decision:
        del entry, call, error, policy
        return steps.Quarantine(reason)

    patch.setattr(decisions, "_in_doubt", in_doubt)


def _decided_by_text(patch: Patch) -> None:
    after = decisions._after_refused_repair

    def read(entry: Entry, error: Refused, reason: str, refusals: int, policy: decisions.Policy) -> steps.Decision:
        if "is active" in reason:
            return steps.Adopt(entry.previous_run_id or 0, None, reason)
        return after(entry, error, reason, refusals, policy)

    patch.setattr(decisions, "_after_refused_repair", read)


def _closed_in_any_status(patch: Patch) -> None:
    close = InMemoryControlPlane._close_one

    def write(self: InMemoryControlPlane, record: Record) -> None:
        row: Row | None = self.database.rows.get(record.entry.run_id)
        if row is not None:
            row.status = "WAITING"
        close(self, record)

    patch.setattr(InMemoryControlPlane, "_close_one", write)


def _bad_row_raises(patch: Patch) -> None:
    sort = sort_rows

    def strict(rows: Sequence[RawRow]) -> Any:  # noqa: ANN401 as sort_rows
        jobs, refused = sort(rows)
        if refused:
            raise ValueError(refused[0].reason)
        return jobs, refused

    patch.setattr(dispatch, "sort_rows", strict)


def _unscrubbed(patch: Patch) -> None:
    patch.setattr(LaggingRuns, "scrub", lambda _self, text: text)


def _parameters_pasted(patch: Patch) -> None:
    call = attempts._call

    def send(work: Work, runs: DatabricksRuns) -> object:
        return call(replace(work, entry=replace(work.entry, parameters=_pasted(work.entry.parameters))), runs)

    patch.setattr(attempts, "_call", send)


def _pasted(parameters: Mapping[str, str]) -> dict[str, str]:
    return {name: value.replace("'", "''") for name, value in parameters.items()}


def _no_deadline(patch: Patch) -> None:
    def ending(self: sending.Sender) -> bool:
        return self._failure is not None or self._stop.is_set()

    patch.setattr(sending.Sender, "_ending", ending)


@dataclass(frozen=True)
class Variant:
    """What was taken out, how, and the invariants that may be the first to break without it.

    ``number`` chooses the examples: one with which few of them are enough. Any other leads there as well, only later.
    """

    name: str
    take_out: Callable[[Patch], None]
    breaks: tuple[int, ...]
    number: int = 1


VARIANTS = (
    Variant("another token for each call", _another_token_each_time, (1,)),
    Variant("no intent before the call", _no_intent, (1,), 10),
    Variant("a clock releases SENDING", _clock_releases_sending, (1, 2)),
    Variant("the history is not compared with the intent", _history_not_compared, (1,), 3),
    Variant("the generation rises with each claim", _generation_too_early, (1,)),
    Variant("rows are claimed as they were read", _rows_as_read, (1,), 3),
    Variant("rows that left WAITING are sent", _unwanted_is_sent, (1,), 10),
    Variant("writes without owning the entry", _nobody_owns, (1, 2)),
    Variant("the generation never rises", _generation_never, (2,), 13),
    Variant("what the dead left is never taken over", _dead_are_forgotten, (2,)),
    Variant("FAILED while a call may have taken effect", _failed_in_doubt, (2,), 5),
    Variant("a repair decided by the text of the refusal", _decided_by_text, (2,)),
    Variant("closing in any status", _closed_in_any_status, (3,)),
    Variant("a bad row raises", _bad_row_raises, (4,)),
    Variant("errors are not scrubbed", _unscrubbed, (5,)),
    Variant("values pasted into text", _parameters_pasted, (6,)),
    Variant("no deadline", _no_deadline, (9,)),
)
