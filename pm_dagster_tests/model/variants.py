"""Broken dispatches: each is the real one with a single rule taken out, and each breaks an invariant.

A rule is taken out of the product's code or statements, by a substitution in the tests' process; never out of the
tests' own code. ``stories`` has the steps that show it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import pytest
from psycopg2 import sql

from pm_dagster.databricks.transport import OneAttempt
from pm_dagster.dispatch import batches, rules, worker
from pm_dagster.dispatch.model import (
    Adopt,
    Decision,
    Entry,
    Quarantine,
    RunSnapshot,
    TokenSubject,
    Work,
    idempotency_token,
)
from pm_dagster.dispatch.ports import DatabricksRuns
from pm_dagster.dispatch.waiting_job import RawRow, RefusedRow, WaitingJob, sort_rows
from pm_dagster.errors import Refused
from pm_dagster.ledger import closing, control_plane, control_table_sql, ledger_sql
from pm_dagster.ledger.control_plane import PostgresControlPlane
from pm_dagster.ledger.control_table_sql import ControlTableStatements
from pm_dagster_tests.model import stories

Patch = pytest.MonkeyPatch


def _another_token_each_time(patch: Patch) -> None:
    call, numbers = worker._call, itertools.count()

    def send(work: Work, runs: DatabricksRuns) -> object:
        token = f"token {next(numbers)}"
        return call(replace(work, entry=replace(work.entry, idempotency_token=token)), runs)

    patch.setattr(worker, "_call", send)


def _no_intent(patch: Patch) -> None:
    _in_sql(patch, control_table_sql, "_INTEND", "SET state = 'SENDING',", "SET state = e.state,")


def _sending_is_claimed(patch: Patch) -> None:
    claimed, also = "e.state = 'CLAIMED' AND", "e.state IN ('CLAIMED', 'SENDING') AND"
    _in_sql(patch, ledger_sql, "GENERATIONS", claimed, also)
    _in_sql(patch, control_table_sql, "CLAIMABLE", claimed, also)
    _in_sql(patch, ledger_sql, "REFRESH_ENTRIES", "IN ('CLAIMED', 'DEFERRED')", "IN ('CLAIMED', 'DEFERRED', 'SENDING')")
    _in_sql(patch, control_table_sql, "_LEFT_BEHIND", "IN ('SENDING', 'ACCEPTED')", "IN ('ACCEPTED')")


def _history_not_compared(patch: Patch) -> None:
    def newer(entry: Entry, run: RunSnapshot, others: Collection[int]) -> int | None:
        del entry, run, others
        return None

    patch.setattr(rules, "_newer_repair", newer)


def _generation_too_early(patch: Patch) -> None:
    _in_sql(patch, ledger_sql, "REFRESH_ENTRIES", "SET state", "SET generation = e.generation + 1, state")


def _generation_never(patch: Patch) -> None:
    def the_first(environment: str, table: str, run_id: int, generation: int, asked: TokenSubject) -> str:
        del generation
        return idempotency_token(environment, table, run_id, 1, asked)

    patch.setattr(control_plane, "idempotency_token", the_first)


def _nobody_owns(patch: Patch) -> None:
    _in_sql(patch, ledger_sql, "RECORD", "(e.dispatcher_id = %(me)s AND e.open) IS TRUE", "e.open")


def _rows_as_read(patch: Patch) -> None:
    claim = PostgresControlPlane.claim

    def as_read(self: PostgresControlPlane, jobs: Sequence[WaitingJob]) -> list[Entry]:
        def current(_cursor: object, run_ids: Sequence[int]) -> tuple[list[WaitingJob], list[RefusedRow]]:
            return [job for job in jobs if job.run_id in run_ids], []

        with pytest.MonkeyPatch.context() as for_this_claim:
            for_this_claim.setattr(self, "_current", current)
            return claim(self, jobs)

    patch.setattr(PostgresControlPlane, "claim", as_read)


def _unwanted_is_sent(patch: Patch) -> None:
    waits = """ AND EXISTS (
        SELECT 1 FROM {table} t WHERE t.{run_id} = e.run_id AND t.{status} = %(waiting)s)"""
    _in_sql(patch, control_table_sql, "_MAY_BE_SENT", waits, "")


def _dead_are_forgotten(patch: Patch) -> None:
    _in_sql(patch, control_table_sql, "_LEFT_BEHIND", "e.control_table", "false AND e.control_table")


def _failed_in_doubt(patch: Patch) -> None:
    def in_doubt(entry: Entry, call: object, error: object, reason: str, policy: object) -> Decision:
        del entry, call, error, policy
        return Quarantine(reason)

    patch.setattr(rules, "_refused_in_doubt", in_doubt)


def _decided_by_text(patch: Patch) -> None:
    after = rules._after_refused_repair

    def read(entry: Entry, error: Refused, reason: str, refusals: int, policy: rules.Policy) -> Decision:
        if "is active" in reason:
            return Adopt(entry.previous_run_id or 0, None, reason)
        return after(entry, error, reason, refusals, policy)

    patch.setattr(rules, "_after_refused_repair", read)


def _closed_in_any_status(patch: Patch) -> None:
    build = ControlTableStatements._build
    guard = "WHERE t.{run_id} = c.run_id AND t.{status} = %(waiting)s"

    def unguarded(self: ControlTableStatements, text: str, **more: sql.Composable) -> sql.Composed:
        return build(self, text.replace(guard, guard.partition(" AND ")[0]), **more)

    def any_status(_row: object, seen: object) -> bool:
        return seen is not None

    patch.setattr(ControlTableStatements, "_build", unguarded)
    patch.setattr(closing, "_to_write", any_status)


def _bad_row_raises(patch: Patch) -> None:
    sort = sort_rows

    def strict(rows: Sequence[RawRow]) -> Any:  # noqa: ANN401 as sort_rows
        jobs, refused = sort(rows)
        if refused:
            raise ValueError(refused[0].reason)
        return jobs, refused

    patch.setattr(batches, "sort_rows", strict)


def _unscrubbed(patch: Patch) -> None:
    patch.setattr(OneAttempt, "scrub", lambda _self, text: text)


def _parameters_pasted(patch: Patch) -> None:
    call = worker._call

    def send(work: Work, runs: DatabricksRuns) -> object:
        return call(replace(work, entry=replace(work.entry, parameters=_pasted(work.entry.parameters))), runs)

    patch.setattr(worker, "_call", send)


def _pasted(parameters: Mapping[str, str]) -> dict[str, str]:
    return {name: value.replace("'", "''") for name, value in parameters.items()}


def _no_deadline(patch: Patch) -> None:
    def ending(self: worker.Worker) -> bool:
        return self._failure is not None or self._stop.is_set()

    patch.setattr(worker.Worker, "_ending", ending)


def _in_sql(patch: Patch, module: ModuleType, name: str, rule: str, instead: str) -> None:
    """Take a rule out of one of the product's statements, which must have it."""
    text = getattr(module, name)
    assert rule in text, f"{name} does not say {rule!r} any more"
    patch.setattr(module, name, text.replace(rule, instead))


@dataclass(frozen=True)
class Variant:
    """What was taken out, how, and the invariants that may be the first to break without it.

    A rule of the database's side, or of the connection to the workspace, is taken out on real servers and shown by its
    ``story``. A rule of the core shows on the fakes as well, which decide nothing of it: there the machine searches for
    it, and ``number`` chooses the examples: one with which few of them are enough. Any other leads there as well, only
    later.
    """

    name: str
    take_out: Callable[[Patch], None]
    breaks: tuple[int, ...]
    number: int = 1
    story: stories.Story | None = None


VARIANTS = (
    Variant("another token for each call", _another_token_each_time, (1,)),
    Variant("no intent before the call", _no_intent, (1,), story=stories.a_death_after_a_repair_that_failed_since),
    Variant(
        "what is left in SENDING is claimed anew",
        _sending_is_claimed,
        (1,),
        story=stories.a_death_after_a_repair_that_failed_since,
    ),
    Variant("the history is not compared with the intent", _history_not_compared, (1,), 3),
    Variant(
        "the generation rises with each claim",
        _generation_too_early,
        (1,),
        story=stories.a_death_between_claim_and_call,
    ),
    Variant(
        "rows are claimed as they were read",
        _rows_as_read,
        (1,),
        story=stories.a_job_that_is_corrected_after_the_reading,
    ),
    Variant(
        "rows that left WAITING are sent", _unwanted_is_sent, (1,), story=stories.a_row_that_leaves_before_its_call
    ),
    Variant(
        "writes without owning the entry", _nobody_owns, (1,), story=stories.a_dispatcher_that_was_only_thought_dead
    ),
    Variant("the generation never rises", _generation_never, (2,), story=stories.a_row_that_is_asked_for_afresh),
    Variant("what the dead left is never rescued", _dead_are_forgotten, (2,), story=stories.a_death_after_a_call),
    Variant("FAILED while a call may have taken effect", _failed_in_doubt, (2,), 5),
    Variant("a repair decided by the text of the refusal", _decided_by_text, (2,)),
    Variant("closing in any status", _closed_in_any_status, (3,), story=stories.a_row_that_leaves_during_its_call),
    Variant("a bad row raises", _bad_row_raises, (4,)),
    Variant("errors are not scrubbed", _unscrubbed, (5,), story=stories.a_refusal_that_repeats_our_token),
    Variant("values pasted into text", _parameters_pasted, (6,)),
    Variant("no deadline", _no_deadline, (9,)),
)
