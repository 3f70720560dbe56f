"""Rows that the view shows and no dispatch can take as they are: why, and what to do about them.

A dispatch takes a row when the view shows it *and* the control table's own row is WAITING by the comparison that guards
every later step. A row for which only one of the two holds is read in every dispatch and taken in none.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from pm_dagster.config.settings import Settings
from pm_dagster.dispatch.waiting_job import shown_value


@dataclass(frozen=True)
class Untakeable:
    """A row that no dispatch can take.

    Attributes:
        run_id: The control plane's id of the row; None when it has none that the ledger can hold.
        reason: Why it cannot be taken.
        remedy: What to do about it.
        settled: Whether the row was dispatched before and has another status since. The view only still shows it, and
            no work is lost.
    """

    run_id: int | None
    reason: str
    remedy: str
    settled: bool = False


@dataclass(frozen=True)
class RowFacts:
    """What view and control table say of a row that the view shows.

    Attributes:
        run_id: The value of the view's id column.
        has_place: Whether the ledger can hold that id.
        in_table: Whether the control table has such a row that we can see.
        status: The table's status; None when it has no such row, or no status.
        waits: Whether the table itself takes that status for waiting.
        view_status: The status that the view shows, where it has such a column and that does not say waiting.
        view_waits: Whether the view's own status says waiting.
        lockable: Whether row security lets us lock the row.
        known: Whether the ledger has an entry of the row.
    """

    run_id: object
    has_place: bool = True
    in_table: bool = True
    status: str | None = None
    waits: bool = True
    view_status: str | None = None
    view_waits: bool = True
    lockable: bool = True
    known: bool = False


def untakeable(facts: RowFacts, settings: Settings, *, row_security: bool = False) -> Untakeable | None:
    """Why the row cannot be taken as it is; None when it can. ``row_security`` is whether it applies to our user."""
    view, table = _view(settings), settings.control_table
    waiting, column = settings.status_waiting, settings.column_run_id
    number = int(facts.run_id) if facts.has_place and isinstance(facts.run_id, (int, Decimal)) else None
    if not facts.has_place:
        what = "is NULL" if facts.run_id is None else f"is {shown_value(facts.run_id)}, no whole 64-bit number"
        return Untakeable(
            None,
            f"a row of {view} cannot be told apart from others: its {column} {what}",
            f"give the row a {column}, or let the view leave it out",
        )
    if not facts.in_table:
        hidden = f", or row security on {table} hides it from our user" if row_security else ""
        return Untakeable(
            number,
            f"{view} shows it, but {table} has no such row{hidden}",
            f"let {view} read {table} itself, not a copy or another table (PM_WAIT_VIEW, PM_RUN_TABLE)"
            + (", and give our user a policy that lets it see the row" if row_security else ""),
        )
    if not facts.waits:
        return _other_status(number, facts, settings)
    if not facts.view_waits:
        return Untakeable(
            number,
            f"{table} says {waiting}, but {view}'s own {settings.column_status} says {shown_value(facts.view_status)},"
            f" which is not {shown_value(waiting)} (PM_STATUS_WAITING)",
            f"let {view} show the table's status as it is, or leave the column out",
        )
    if not facts.lockable:
        return Untakeable(
            number,
            f"row security on {table} shows it to our user, but keeps our user from changing it",
            "give our user an UPDATE policy (USING) that includes the row",
        )
    return None


def _other_status(number: int | None, facts: RowFacts, settings: Settings) -> Untakeable:
    view, table = _view(settings), settings.control_table
    said, waiting = shown_value(facts.status), shown_value(settings.status_waiting)
    if looks_alike(facts.status, settings.status_waiting):
        return Untakeable(
            number,
            f"{view} shows it, but {table} says {said}, and for {table} that is not {waiting} (PM_STATUS_WAITING)",
            f"write {waiting} into {settings.column_status}, or set PM_STATUS_WAITING to what stands there",
        )
    return Untakeable(
        number,
        f"{view} shows it, but {table} says {said}, not {waiting} (PM_STATUS_WAITING)",
        f"nothing, if {view} only lags behind; else let it show only rows whose {settings.column_status} is {waiting}",
        settled=facts.known,
    )


def _view(settings: Settings) -> str:
    return f"{settings.schema}.{settings.wait_view}"


def looks_alike(status: str | None, waiting: str) -> bool:
    """Whether a person would take the status for the waiting one: letters of another case, blanks around it."""
    return status is not None and status.strip().casefold() == waiting.strip().casefold()
