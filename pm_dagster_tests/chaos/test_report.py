"""The committed page is that of the code's own matrix, whole and without a breach, as a run of it wrote it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest

from pm_dagster_tests.chaos import stamp
from pm_dagster_tests.chaos.boundaries import Boundary
from pm_dagster_tests.chaos.cell import run_cell
from pm_dagster_tests.chaos.deployment import ChaosDeployment
from pm_dagster_tests.chaos.faults import CALLS, FAULTS
from pm_dagster_tests.chaos.matrix import TABLE, VARIANTS, Cell, varied
from pm_dagster_tests.chaos.oracle import PROMISES
from pm_dagster_tests.chaos.records import FOLDER, REQUESTS, Record, read, record
from pm_dagster_tests.chaos.report import NOT_RUN, PAGE, flaws, incomplete, page
from pm_dagster_tests.chaos.stamp import Stamp
from pm_dagster_tests.model.variants import VARIANTS as BROKEN

_STAMP = Stamp("0123456789abcdef" * 2 + "01234567", "v1-2-g0123456789ab", "0.1.0", "2026-01-02")


def _records(breaches: int = 0, requests: int = 9) -> list[Record]:
    counts = {**dict.fromkeys(PROMISES, 0), "rows": 4, "lost": breaches}
    cells = [cell for cell in TABLE.cells if not cell.without_meaning] + list(varied())
    suites = ["variants" if cell.variant else "matrix" for cell in cells]
    return [Record(suite, cell.name, counts, {REQUESTS: requests}) for suite, cell in zip(suites, cells, strict=True)]


def _plain(text: str) -> set[str]:
    """The lines of a page's tables without what differs from run to run."""
    return {re.sub(r"\b0 of \d+", "0", line) for line in text.splitlines() if line.startswith("| ")}


def test_the_committed_page_is_not_stale() -> None:
    committed = PAGE.read_text(encoding="utf-8")
    missing = sorted(_plain(page(_records(), _STAMP)) - _plain(committed))
    assert missing == [], "run `make chaos` and commit docs/proof.md"
    assert NOT_RUN not in committed
    assert [each.name for each in BROKEN if f"| {each.name}: invariant" not in committed] == []


def test_the_committed_page_was_made_by_a_run() -> None:
    assert flaws(PAGE.read_text(encoding="utf-8")) == [], "run `make chaos` on a clean tree and commit docs/proof.md"


def test_every_fault_call_boundary_and_variant_is_named() -> None:
    committed = PAGE.read_text(encoding="utf-8")
    assert [fault.name for fault in FAULTS if f"| {fault.name} |" not in committed] == []
    assert [call for call in CALLS if f"### {call}" not in committed] == []
    assert [boundary for boundary in Boundary if f" {boundary.value} |" not in committed] == []
    assert [variant for variant in VARIANTS if f"| {variant} |" not in committed] == []


def test_a_breach_and_a_missing_cell_are_told() -> None:
    records = _records(breaches=1)
    assert f"| {len(records)} |" in page(records, _STAMP)
    assert "| lost 1 of 9 |" in page(records, _STAMP)
    assert incomplete(records) == []
    assert incomplete(records[1:]) == [records[0].name]
    assert NOT_RUN in page(records[1:], _STAMP)


def test_a_cell_in_which_nothing_was_asked_was_not_run() -> None:
    records = _records(requests=0)
    assert incomplete(records) == [each.name for each in records]
    lines = [line for line in page(records, _STAMP).splitlines() if line.startswith(f"| {FAULTS[0].name} |")]
    assert len(lines) == len(CALLS)
    assert all(NOT_RUN in line and "| 0" not in line for line in lines)


def test_an_edited_page_and_one_of_no_commit_are_found_out() -> None:
    good = page(_records(), _STAMP)
    assert flaws(good) == []
    broken = page(_records(breaches=1), _STAMP)
    assert flaws(broken.replace("lost 1 of 9", "0 of 9")) != []
    for change in (("0 of 9", "0 of 8"), ("2026-01-02", "2026-01-03"), ("0.1.0", "0.1.1"), (_STAMP.commit, "f" * 40)):
        assert any("edited" in flaw for flaw in flaws(good.replace(*change, 1))), change
    assert flaws(good.rpartition("\n\n")[0]) != []
    # Without its last line and its stamp, as pages were before.
    assert (
        len(flaws("\n".join(line for line in good.splitlines() if "hecksum" not in line and "Proven" not in line))) == 2
    )
    dirty = page(_records(), replace(_STAMP, changes=(" M pm_dagster/dispatch/worker.py",)))
    assert "PROVES NOTHING" in dirty
    assert flaws(dirty) == ["it is of a tree with changes that are in no commit"]


def _checkout(folder: Path) -> Callable[..., None]:
    def git(*arguments: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
        subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True)  # noqa: S607

    (folder / "docs").mkdir(parents=True)
    git("init", "--quiet")
    (folder / "a.py").write_text("1\n")
    (folder / "docs" / "proof.md").write_text("old\n")
    git("add", "--all")
    git("commit", "--quiet", "--message", "first")
    return git


def test_a_stamp_is_of_a_commit_and_of_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree, folder = tmp_path / "tree", tmp_path / "records"
    git = _checkout(tree)
    clean = stamp.of_tree(tree)
    assert (clean.changes, len(clean.commit)) == ((), 40)
    stamp.keep(folder, clean)
    assert stamp.kept(folder) == clean
    (tree / "docs" / "proof.md").write_text("new\n")
    stamp.check_unchanged(clean, stamp.of_tree(tree))
    (tree / "b.py").write_text("2\n")
    dirty = stamp.of_tree(tree)
    with pytest.raises(SystemExit, match="commit first"):
        stamp.keep(folder, dirty)
    with pytest.raises(SystemExit, match="when the proof began"):
        stamp.check_unchanged(clean, dirty)
    monkeypatch.setenv(stamp.ALLOW_DIRTY, "true")
    stamp.keep(folder, dirty)
    assert stamp.kept(folder).changes == ("?? b.py",)
    git("add", "--all")
    git("commit", "--quiet", "--message", "second")
    with pytest.raises(SystemExit, match="when the proof began"):
        stamp.check_unchanged(clean, stamp.of_tree(tree))
    with pytest.raises(SystemExit, match="no checkout"):
        stamp.of_tree(tmp_path)
    with pytest.raises(SystemExit, match="before the first trial"):
        stamp.kept(tmp_path)


def test_a_cell_that_ran_says_of_how_much(deployments: Callable[[], AbstractContextManager[ChaosDeployment]]) -> None:
    cell = Cell(FAULTS[0], CALLS[0], Boundary.NONE)
    with deployments() as deployment:
        result = run_cell(deployment, cell)
    assert result.good, str(result)
    assert result.requests >= 6
    ran = Record("matrix", cell.name, result.verdict.counts, {REQUESTS: result.requests})
    assert f"| 0 of {result.requests} |" in page([ran], _STAMP)
    assert cell.name not in incomplete([ran])


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
