"""One row of the view: as it was read, as a job that can be dispatched, or as a row that is refused."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum

#: Jobs API: the JSON of one kind of parameters is limited to 10,000 bytes
#: (https://docs.databricks.com/api/workspace/jobs/runnow).
PARAMETERS_LIMIT_BYTES = 10_000
_SHOWN_LIMIT = 80
_NO_TEXT = re.compile("[\x00\ud800-\udfff]")
INT64_MAX = 2**63 - 1
#: Ids are made by Databricks and Postgres; both count from 1.
INT64_MIN = 1


class Branch(StrEnum):
    """What a waiting job needs: a new run, or a repair of the run it already had."""

    NEW = "new"
    REPAIR = "repair"


@dataclass(frozen=True)
class RawRow:
    """A row as the view gave it, with unchecked values.

    Attributes:
        run_id: The control plane's id of the row.
        job_id: The id of the Databricks job.
        previous_run_id: The Databricks run to repair; None for a new run.
        parameters: Job parameters: the value of the column of each.
        since: When the work arrived.
        in_control_table: Whether the control table has the row.
        unreadable: Why the view could not show the row's values, which are then missing; empty when it could.
    """

    run_id: object
    job_id: object
    previous_run_id: object
    parameters: Mapping[str, object]
    since: datetime | None = None
    in_control_table: bool = True
    unreadable: str = ""


@dataclass(frozen=True)
class WaitingJob:
    """A row that can be dispatched. Ids are 64-bit integers, job parameters are strings."""

    run_id: int
    job_id: int
    previous_run_id: int | None
    parameters: Mapping[str, str]
    since: datetime | None = None

    @property
    def branch(self) -> Branch:
        """New without a previous Databricks run, repair with one."""
        return Branch.NEW if self.previous_run_id is None else Branch.REPAIR

    @property
    def label(self) -> str:
        """One line for logs."""
        previous = "" if self.previous_run_id is None else f", previous run {self.previous_run_id}"
        return f"waiting job {self.run_id} (Databricks job {self.job_id}{previous})"


@dataclass(frozen=True)
class RefusedRow:
    """A row that cannot be dispatched, and why; ``run_id`` is None when even that cannot be read."""

    run_id: int | None
    branch: Branch
    reason: str
    row: RawRow


class _Unreadable(ValueError):
    """Why one value of a row cannot be used."""


def _integer(value: object, column: str) -> int:
    number = _as_int(value)
    if number is None:
        raise _Unreadable(f"{column} is not a whole number: {shown_value(value)}")
    if not INT64_MIN <= number <= INT64_MAX:
        raise _Unreadable(f"{column} is out of range for a 64-bit id: {number}")
    return number


def _as_int(value: object) -> int | None:
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, Decimal):
        return int(value) if value.is_finite() and value == value.to_integral_value() else None
    if isinstance(value, str):
        text = value.strip()
        return int(text) if text.isascii() and text.isdigit() and len(text) <= len(str(INT64_MAX)) else None
    return None


def shown_value(value: object) -> str:
    """A value as messages show it: quoted, and not too long."""
    text = "null" if value is None else repr(value)
    return text if len(text) <= _SHOWN_LIMIT else f"{text[: _SHOWN_LIMIT - 3]}..."


def _parameters(values: Mapping[str, object]) -> dict[str, str]:
    strings = {name: "" if value is None else str(value) for name, value in values.items()}
    for name, text in strings.items():
        if _NO_TEXT.search(text):
            raise _Unreadable(f"parameter {name} holds NUL or half a surrogate pair, which no database or API takes")
    size = len(json.dumps(strings).encode())
    if size > PARAMETERS_LIMIT_BYTES:
        longest = max(strings, key=lambda name: len(strings[name]))
        raise _Unreadable(
            f"the job parameters are {size} bytes as JSON, more than the {PARAMETERS_LIMIT_BYTES} that the Jobs API"
            f" takes; the longest is {longest} with {len(strings[longest])} characters"
        )
    return strings


def _waiting_job(row: RawRow, occurrences: int) -> WaitingJob:
    run_id = _integer(row.run_id, "run_id")
    if occurrences > 1:
        raise _Unreadable(f"run_id {run_id} stands {occurrences} times in the view; it must be unique")
    if row.unreadable:
        raise _Unreadable(f"the view cannot show this row: {row.unreadable}")
    if not row.in_control_table:
        raise _Unreadable(f"run_id {run_id} is in the view but not in the control table")
    return WaitingJob(
        run_id=run_id,
        job_id=_integer(row.job_id, "the Databricks job id"),
        previous_run_id=None if row.previous_run_id is None else _integer(row.previous_run_id, "the previous run id"),
        parameters=_parameters(row.parameters),
        since=row.since,
    )


def sort_rows(rows: Sequence[RawRow]) -> tuple[list[WaitingJob], list[RefusedRow]]:
    """Split rows of the view into those that can be dispatched and those that cannot, keeping their order.

    A ``run_id`` that occurs more than once is refused once, for all its rows: any choice among them could run the wrong
    work.
    """
    occurrences = Counter(_hashable_ids(rows))
    jobs: list[WaitingJob] = []
    refused: dict[object, RefusedRow] = {}
    for position, row in enumerate(rows):
        number = _as_int(row.run_id)
        try:
            jobs.append(_waiting_job(row, occurrences[number]))
        except _Unreadable as why:
            branch = Branch.NEW if row.previous_run_id is None else Branch.REPAIR
            key: object = ("position", position) if number is None else number
            refused.setdefault(key, RefusedRow(run_id=_key_of(number), branch=branch, reason=str(why), row=row))
    return jobs, list(refused.values())


def row_key(row: RawRow) -> int | None:
    """The id under which the ledger can keep the row; None when its id is no 64-bit number."""
    return _key_of(_as_int(row.run_id))


def within(rows: Sequence[RawRow], limit: int) -> list[RawRow]:
    """The first ``limit`` of the rows that the ledger can keep, and all others, which are only reported."""
    room = itertools.count(1)
    return [row for row in rows if row_key(row) is None or next(room) <= limit]


def _hashable_ids(rows: Iterable[RawRow]) -> list[int | None]:
    return [_as_int(row.run_id) for row in rows]


def _key_of(number: int | None) -> int | None:
    """The id under which the ledger can keep a refusal: any number that Postgres' BIGINT can hold."""
    return number if number is not None and -INT64_MAX - 1 <= number <= INT64_MAX else None
