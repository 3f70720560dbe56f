"""The DataFrames between the ops of a dispatch: waiting rows, claimed entries, repair targets, the report.

Ids are nullable 64-bit integers: a float would lose digits above 2^53. What an op gets is a table that people can read;
the ledger has the rest of each entry, and the last word.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd

from pm_dagster.dispatch.batches import Claimed
from pm_dagster.dispatch.model import Entry, EntryState
from pm_dagster.dispatch.report import Report, ReportRow
from pm_dagster.dispatch.service import RepairTarget
from pm_dagster.dispatch.waiting_job import INT64_MAX, Branch, RawRow, sort_rows

IDS = ("run_id", "job_id", "previous_run_id")
SINCE, PRESENT, INVALID = "since", "in_control_table", "invalid"
FIXED = (*IDS, SINCE, PRESENT, INVALID)
#: A job parameter named like one of our own columns gets this in front.
PREFIX = "parameters."
#: What a timestamp of pandas 1.5 can hold, whole years.
_FIRST_YEAR, _LAST_YEAR = 1678, 2261
_ENTRY = {
    "entry_id": "Int64",
    "run_id": "Int64",
    "generation": "Int64",
    "job_id": "Int64",
    "previous_run_id": "Int64",
    "rescued": "bool",
}
_TARGET = {
    "entry_id": "Int64",
    "run_id": "Int64",
    "previous_run_id": "Int64",
    "latest_repair_id": "Int64",
    "fresh_run": "bool",
    "reason": "object",
    "run_job_id": "Int64",
    "page_url": "object",
}

_REPORT = ("run_id", "branch", "outcome", "control_status", "databricks_run_id", "repair_id", "page_url", "reason")


def waiting_frame(rows: Sequence[RawRow]) -> pd.DataFrame:
    """The rows of the view, in their order.

    Returns:
        ``run_id``, ``job_id`` and ``previous_run_id`` (Int64); ``since`` (UTC); a column of text for each job
        parameter, as the workspace would get it; ``in_control_table`` (bool); ``invalid``, None or a mapping of column
        to value for the values that their column cannot hold.
    """
    columns: dict[str, Any] = {name: _ids([getattr(row, name) for row in rows]) for name in IDS}
    moments: Any = [row.since if _fits_moment(row.since) else None for row in rows]
    columns[SINCE] = pd.Series(pd.to_datetime(moments, utc=True))
    columns |= {_column(name): _texts([row.parameters.get(name) for row in rows]) for name in _names(rows)}
    columns[PRESENT] = np.array([row.in_control_table for row in rows], dtype=bool)
    columns[INVALID] = pd.Series([_misfits(row) or None for row in rows], dtype=object)
    return pd.DataFrame(columns)


def rows_from(frame: pd.DataFrame) -> list[RawRow]:
    """The rows that ``waiting_frame`` was given."""
    parameters = {column: _name(column) for column in frame.columns if column not in FIXED}
    return [_row(record, parameters) for record in frame.astype(object).to_dict("records")]


def _row(record: Mapping[Any, Any], parameters: Mapping[str, str]) -> RawRow:
    kept: Mapping[str, Any] = record[INVALID] if isinstance(record[INVALID], dict) else {}
    ids = {name: kept.get(name, _null_or(int, record[name])) for name in IDS}
    moment = kept.get(SINCE, _null_or(pd.Timestamp.to_pydatetime, record[SINCE]))
    texts = {name: _null_or(str, record[column]) for column, name in parameters.items()}
    return RawRow(**ids, parameters=texts, since=moment, in_control_table=bool(record[PRESENT]))


def _misfits(row: RawRow) -> dict[str, object]:
    """The values of a row that the typed columns cannot hold."""
    values = {name: getattr(row, name) for name in IDS}
    misfits = {name: value for name, value in values.items() if value is not None and not _fits_id(value)}
    if row.since is not None and not _fits_moment(row.since):
        misfits[SINCE] = row.since
    return misfits


def _fits_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -INT64_MAX - 1 <= value <= INT64_MAX


def _fits_moment(value: object) -> bool:
    aware = isinstance(value, datetime) and value.tzinfo is not None
    return aware and isinstance(value, datetime) and _FIRST_YEAR <= value.year <= _LAST_YEAR


def _ids(values: Sequence[object]) -> Any:  # noqa: ANN401 pandas' stubs differ between its versions
    numbers = [int(value) if _fits_id(value) else 0 for value in values]  # type: ignore[call-overload]
    mask = np.array([not _fits_id(value) for value in values], dtype=bool)
    return pd.arrays.IntegerArray(np.array(numbers, dtype="int64"), mask)


def _texts(values: Sequence[object]) -> Any:  # noqa: ANN401 same
    # Not the Arrow-backed kind: it is not there with pandas 1.5.
    return pd.array([pd.NA if value is None else str(value) for value in values], dtype=pd.StringDtype("python"))


def _names(rows: Sequence[RawRow]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.parameters))


def _column(name: str) -> str:
    return f"{PREFIX}{name}" if name in FIXED or name.startswith(PREFIX) else name


def _name(column: str) -> str:
    return column.removeprefix(PREFIX)


def _null_or(convert: Callable[[Any], Any], value: object) -> Any:  # noqa: ANN401 the value of a cell
    return None if value is None or value is pd.NA or value is pd.NaT or value != value else convert(value)  # noqa: PLR0124


def _frame(records: Sequence[dict[str, Any]], types: dict[str, str]) -> pd.DataFrame:
    # Column by column and through object: an id must never pass through a float.
    columns = {
        name: pd.Series([record[name] for record in records], dtype="object").astype(kind)  # type: ignore[call-overload]
        for name, kind in types.items()
    }
    return pd.DataFrame(columns)


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    rows = frame.astype(object).to_dict("records")
    return [{str(name): None if value is pd.NA else value for name, value in row.items()} for row in rows]


def entries_frame(entries: Sequence[Entry]) -> pd.DataFrame:
    """Claimed entries: their ids (Int64), and whether they were rescued from a dead dispatcher (bool)."""
    return _frame([vars(entry) for entry in entries], _ENTRY)


def entry_ids(*frames: pd.DataFrame) -> list[int]:
    """The ids of the entries in the frames."""
    return [int(value) for frame in frames for value in frame["entry_id"]]


def targets_frame(targets: Sequence[RepairTarget]) -> pd.DataFrame:
    """Entries whose run was looked up; the columns are the fields of ``RepairTarget``."""
    return _frame([asdict(target) for target in targets], _TARGET)


def targets_from(frame: pd.DataFrame) -> list[RepairTarget]:
    """The targets that ``targets_frame`` was given."""
    return [RepairTarget(**record) for record in _records(frame)]


def claimed_from(waiting_jobs: pd.DataFrame, new: pd.DataFrame, repair: pd.DataFrame) -> Claimed:
    """What was claimed and what was refused, for the report; the entries carry their ids and nothing to send."""
    rows = rows_from(waiting_jobs)
    entries = [
        _entry(record, branch)
        for branch, frame in ((Branch.NEW, new), (Branch.REPAIR, repair))
        for record in _records(frame)
    ]
    return Claimed(entries, refused=sort_rows(rows)[1], rows=rows)


def _entry(record: dict[str, Any], branch: Branch) -> Entry:
    return Entry(**record, branch=branch, state=EntryState.CLAIMED, parameters={}, idempotency_token="")


def report_frame(report: Report) -> pd.DataFrame:
    """The value of ``dispatched_jobs``, a line for each row.

    Returns:
        ``run_id``, ``databricks_run_id`` and ``repair_id`` (Int64); ``branch``, ``outcome``, ``control_status``,
        ``page_url`` and ``reason`` (text).
    """
    records = [_reported(row) for row in report.rows]
    frame = pd.DataFrame(records, columns=list(_REPORT), dtype=object)
    return frame.astype(dict.fromkeys(("run_id", "databricks_run_id", "repair_id"), "Int64"))


def _reported(row: ReportRow) -> dict[str, Any]:
    return {**{name: getattr(row, name) for name in _REPORT}, "branch": row.branch.value, "outcome": row.outcome.value}
