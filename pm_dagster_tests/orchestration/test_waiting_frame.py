"""Rows survive the DataFrame."""

from __future__ import annotations

import pickle
from datetime import UTC, datetime
from decimal import Decimal

import pandas as pd
import pytest

from pm_dagster.dispatch.waiting_job import RawRow, sort_rows
from pm_dagster.orchestration.frames import rows_from, waiting_frame

_SINCE = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
_ROWS = [
    RawRow(1, 7, None, {"RUN_ID": "1", "FILE_NAME": "a.csv"}, _SINCE),
    RawRow(2**53 + 1, 2**63 - 1, 2**60 + 1, {"RUN_ID": "9007199254740993", "FILE_NAME": None}, None),
    RawRow(2**70, "12", 1.5, {"RUN_ID": "", "FILE_NAME": "naïve"}, datetime(9999, 1, 1, tzinfo=UTC)),
    RawRow(None, True, Decimal("4.5"), {"RUN_ID": None, "FILE_NAME": "x"}, _SINCE, in_control_table=False),
    RawRow("garbage", None, None, {"RUN_ID": "nan", "FILE_NAME": "None"}, _SINCE),
]


def test_rows_come_back_as_they_were() -> None:
    assert rows_from(waiting_frame(_ROWS)) == _ROWS


def test_rows_come_back_from_storage_as_they_were() -> None:
    assert rows_from(pickle.loads(pickle.dumps(waiting_frame(_ROWS)))) == _ROWS  # noqa: S301 our own bytes


def test_the_same_rows_are_refused_before_and_after() -> None:
    assert sort_rows(rows_from(waiting_frame(_ROWS))) == sort_rows(_ROWS)


@pytest.mark.parametrize("rows", [_ROWS, _ROWS[:1], []])
def test_the_columns_have_their_types_whatever_the_rows(rows: list[RawRow]) -> None:
    frame = waiting_frame(rows)
    assert [str(frame[name].dtype) for name in ("run_id", "job_id", "previous_run_id")] == ["Int64"] * 3
    assert isinstance(frame["since"].dtype, pd.DatetimeTZDtype)
    assert frame["in_control_table"].dtype == bool
    assert rows_from(frame) == rows


def test_a_job_parameter_may_be_named_like_a_column() -> None:
    rows = [RawRow(1, 7, None, {"run_id": "5", "parameters.run_id": "6", "since": None})]
    assert rows_from(waiting_frame(rows)) == rows


def test_a_parameter_that_is_no_text_becomes_what_the_workspace_would_get() -> None:
    rows = [RawRow(1, 7, None, {"RUN_ID": 2**60 + 1})]
    assert rows_from(waiting_frame(rows))[0].parameters == {"RUN_ID": str(2**60 + 1)}
