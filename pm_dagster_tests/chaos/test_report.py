"""The committed page is that of the code's own matrix, whole and without a breach."""

from __future__ import annotations

from pathlib import Path

import pytest

from pm_dagster_tests.chaos.boundaries import Boundary
from pm_dagster_tests.chaos.faults import CALLS, FAULTS
from pm_dagster_tests.chaos.matrix import TABLE, VARIANTS, varied
from pm_dagster_tests.chaos.oracle import PROMISES
from pm_dagster_tests.chaos.records import FOLDER, Record, read, record
from pm_dagster_tests.chaos.report import NOT_RUN, PAGE, incomplete, page


def _records(breaches: int = 0) -> list[Record]:
    counts = {**dict.fromkeys(PROMISES, 0), "rows": 4, "lost": breaches}
    cells = [cell for cell in TABLE.cells if not cell.without_meaning] + list(varied())
    return [Record("variants" if cell.variant else "matrix", cell.name, counts) for cell in cells]


def test_the_committed_page_is_not_stale() -> None:
    committed = PAGE.read_text(encoding="utf-8")
    without_figures = [line for line in page(_records()).splitlines() if line.startswith("| ")]
    missing = [line for line in without_figures if line not in committed]
    assert missing == [], "run `make chaos` and commit docs/proof.md"
    assert NOT_RUN not in committed


def test_every_fault_call_boundary_and_variant_is_named() -> None:
    committed = PAGE.read_text(encoding="utf-8")
    assert [fault.name for fault in FAULTS if f"| {fault.name} |" not in committed] == []
    assert [call for call in CALLS if f"### {call}" not in committed] == []
    assert [boundary for boundary in Boundary if f" {boundary.value} |" not in committed] == []
    assert [variant for variant in VARIANTS if f"| {variant} |" not in committed] == []


def test_a_breach_and_a_missing_cell_are_told() -> None:
    records = _records(breaches=1)
    assert f"| {len(records)} |" in page(records)
    assert "| lost 1 |" in page(records)
    assert incomplete(records) == []
    assert incomplete(records[1:]) == [records[0].name]
    assert NOT_RUN in page(records[1:])


def test_records_are_kept_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FOLDER, raising=False)
    record("suite", "nowhere", {"rows": 1})
    monkeypatch.setenv(FOLDER, str(tmp_path / "records"))
    record("suite", "b", {"rows": 1}, {"seconds": 0.5}, "a note")
    record("suite", "a", {"rows": 1})
    record("suite", "a", {"rows": 2})
    found = read(tmp_path / "records")
    assert found == [
        Record("suite", "a", {"rows": 2}, {}, ""),
        Record("suite", "b", {"rows": 1}, {"seconds": 0.5}, "a note"),
    ]
