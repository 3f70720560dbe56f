"""Rows of the view as a pandas DataFrame and back, without losing a digit.

Put here: the columns and their types. Keep out: what a row means (``core.waiting_job``). Ids are nullable 64-bit
integers: a float would lose digits above 2^53. A value that its column cannot hold stays, as it came, in ``invalid``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd

from pm_dagster.dispatch.waiting_job import INT64_MAX, RawRow

IDS = ("run_id", "job_id", "previous_run_id")
SINCE, PRESENT, INVALID = "since", "in_control_table", "invalid"
FIXED = (*IDS, SINCE, PRESENT, INVALID)
#: A job parameter named like one of our own columns gets this in front.
PREFIX = "parameters."
#: What a timestamp of pandas 1.5 can hold, whole years.
_FIRST_YEAR, _LAST_YEAR = 1678, 2261


def to_frame(rows: Sequence[RawRow]) -> pd.DataFrame:
    """The rows in their order. Job parameters become text, as the workspace would get them; a null stays null."""
    columns: dict[str, Any] = {name: _ids([getattr(row, name) for row in rows]) for name in IDS}
    moments: Any = [row.since if _fits_moment(row.since) else None for row in rows]
    columns[SINCE] = pd.Series(pd.to_datetime(moments, utc=True))
    columns |= {_column(name): _texts([row.parameters.get(name) for row in rows]) for name in _names(rows)}
    columns[PRESENT] = np.array([row.in_control_table for row in rows], dtype=bool)
    columns[INVALID] = pd.Series([_misfits(row) or None for row in rows], dtype=object)
    return pd.DataFrame(columns)


def from_frame(frame: pd.DataFrame) -> list[RawRow]:
    """The rows that ``to_frame`` was given."""
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
