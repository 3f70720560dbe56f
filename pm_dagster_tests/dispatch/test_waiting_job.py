"""Which rows can be dispatched, and why the others cannot."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pm_dagster.dispatch.waiting_job import INT64_MAX, PARAMETERS_LIMIT_BYTES, Branch, RawRow, sort_rows

ROW = RawRow(1, 1001, None, {"RUN_ID": 1})


def reason(row: RawRow) -> str:
    jobs, refused = sort_rows([row])
    assert jobs == []
    return refused[0].reason


def test_a_row_without_a_previous_run_is_new() -> None:
    ((job,), _) = sort_rows([ROW])
    assert job.branch is Branch.NEW
    assert job.label == "waiting job 1 (Databricks job 1001)"


def test_a_row_with_a_previous_run_is_a_repair() -> None:
    ((job,), _) = sort_rows([replace(ROW, previous_run_id=7)])
    assert job.branch is Branch.REPAIR
    assert job.label == "waiting job 1 (Databricks job 1001, previous run 7)"


@pytest.mark.parametrize("value", [2**53 + 1, str(2**53 + 1), Decimal(2**53 + 1), f" {2**53 + 1} "])
def test_ids_above_2_to_53_keep_every_digit(value: object) -> None:
    ((job,), _) = sort_rows([RawRow(value, value, value, {})])
    assert (job.run_id, job.job_id, job.previous_run_id) == (2**53 + 1,) * 3


UNUSABLE: list[object] = [
    None,
    True,
    False,
    0,
    -1,
    INT64_MAX + 1,
    10**400,
    1.0,
    1e300,
    float("nan"),
    Decimal("1.5"),
    Decimal("NaN"),
    Decimal("Infinity"),
    "",
    " ",
    "abc",
    "1.0",
    "1e3",
    "-1",
    "+1",
    "1_000",
    "\u0661\u0662",
    "9" * 5000,
    "1; DROP TABLE x",
    b"1",
    [1],
    {},
]


@pytest.mark.parametrize("value", UNUSABLE, ids=lambda value: repr(value)[:20])
def test_an_unusable_job_id_is_refused_with_the_column_named(value: object) -> None:
    why = reason(replace(ROW, job_id=value))
    assert why.startswith("the Databricks job id is ")
    assert len(why) < 600


@pytest.mark.parametrize("value", UNUSABLE, ids=lambda value: repr(value)[:20])
def test_an_unusable_run_id_is_refused_and_stops_no_other(value: object) -> None:
    jobs, refused = sort_rows([replace(ROW, run_id=value), replace(ROW, run_id=2)])
    assert [job.run_id for job in jobs] == [2]
    assert refused[0].reason.startswith("run_id is ")
    assert refused[0].run_id is None or -(2**63) <= refused[0].run_id < 2**63


@pytest.mark.parametrize("value", [value for value in UNUSABLE if value is not None], ids=lambda v: repr(v)[:20])
def test_an_unusable_previous_run_is_refused_as_a_repair(value: object) -> None:
    _, (refused,) = sort_rows([replace(ROW, previous_run_id=value)])
    assert refused.branch is Branch.REPAIR
    assert refused.reason.startswith("the previous run id is ")


def test_a_run_id_that_stands_twice_is_refused_once_with_all_its_rows() -> None:
    rows = [ROW, replace(ROW, job_id=2), replace(ROW, run_id=2), replace(ROW, run_id="1")]
    jobs, refused = sort_rows(rows)
    assert [job.run_id for job in jobs] == [2]
    assert [(row.run_id, row.reason) for row in refused] == [
        (1, "run_id 1 stands 3 times in the view; it must be unique")
    ]


def test_several_rows_without_a_run_id_are_each_refused() -> None:
    _, refused = sort_rows([replace(ROW, run_id=None)] * 3)
    assert len(refused) == 3


def test_a_row_that_the_control_table_lacks_is_refused() -> None:
    assert "not in the control table" in reason(replace(ROW, in_control_table=False))


def test_parameters_become_strings() -> None:
    ((job,), _) = sort_rows([replace(ROW, parameters={"A": 5, "B": None, "C": "ä", "D": Decimal("1.50")})])
    assert job.parameters == {"A": "5", "B": "", "C": "ä", "D": "1.50"}


def test_parameters_may_fill_the_limit_and_no_more() -> None:
    room = PARAMETERS_LIMIT_BYTES - len(json.dumps({"FILE": ""}))
    ((job,), _) = sort_rows([replace(ROW, parameters={"FILE": "x" * room})])
    assert len(job.parameters["FILE"]) == room
    why = reason(replace(ROW, parameters={"FILE": "x" * (room + 1)}))
    assert "10001 bytes as JSON" in why
    assert "the longest is FILE" in why


def test_the_order_is_kept() -> None:
    jobs, _ = sort_rows([replace(ROW, run_id=number) for number in (5, 3, 9)])
    assert [job.run_id for job in jobs] == [5, 3, 9]


ANY = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.decimals(), st.binary())


@given(st.lists(st.tuples(ANY, ANY, ANY), max_size=8))
def test_every_row_is_either_a_job_or_refused_and_ids_are_unique(rows: list[tuple[object, object, object]]) -> None:
    jobs, refused = sort_rows([RawRow(*row, {}) for row in rows])
    ids = [job.run_id for job in jobs]
    assert len(set(ids)) == len(ids)
    assert not set(ids) & {row.run_id for row in refused}
    assert all(1 <= n <= INT64_MAX for job in jobs for n in (job.run_id, job.job_id))
    assert bool(rows) == bool(jobs or refused)
