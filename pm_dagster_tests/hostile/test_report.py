"""The cluster's report file in places and sizes that nobody expects."""

from __future__ import annotations

from pathlib import Path
from zipfile import ZipFile

import pytest
from openpyxl import load_workbook

from pm_dagster.cluster.report import ReportFile
from pm_dagster.dispatch.model import Outcome
from pm_dagster.dispatch.report import Report, ReportRow
from pm_dagster.dispatch.waiting_job import Branch
from pm_dagster.errors import ConfigurationError


def _row(number: int, text: str = "") -> ReportRow:
    url = f"https://w/{number}"
    return ReportRow(number, Branch.NEW, Outcome.ACCEPTED, text, page_url=url, parameters={"FILE": text})


def test_a_link_stays_and_what_it_names_is_replaced(tmp_path: Path) -> None:
    target, link = tmp_path / "there" / "real.xlsx", tmp_path / "report.xlsx"
    target.parent.mkdir()
    target.write_text("old")
    link.symlink_to(target)
    ReportFile(link).write(Report(), [_row(1)])
    assert link.is_symlink()
    assert load_workbook(target)["waiting jobs"]["A2"].value == "1"


def test_a_link_into_a_folder_that_is_not_there_is_said_before_the_pass(tmp_path: Path) -> None:
    link = tmp_path / "report.xlsx"
    link.symlink_to(tmp_path / "gone" / "real.xlsx")
    with pytest.raises(ConfigurationError, match=r"there is no folder .*gone"):
        ReportFile(link)


def test_a_link_to_itself_is_replaced(tmp_path: Path) -> None:
    link = tmp_path / "report.xlsx"
    link.symlink_to(link)
    ReportFile(link).write(Report(), [])
    assert load_workbook(link)["numbers"]["A1"].value == "number"


def test_texts_arrive_in_the_sheet_and_nothing_becomes_a_formula(tmp_path: Path) -> None:
    texts = ["=1+1", "@x", "-2+3", "\x01\x1b[31m\x7f", "ä 納品 🚚 \u202e", "a" * 40_000, "_x0041_", "<a>&'\""]
    file = tmp_path / "report.xlsx"
    ReportFile(file).write(Report(), [_row(number, text) for number, text in enumerate(texts, 1)])
    sheet = load_workbook(file)["waiting jobs"]
    found = [sheet.cell(row, 4) for row in range(2, 2 + len(texts))]
    assert {cell.data_type for cell in found} == {"s"}
    # An underscore escape stands for the character; the reader leaves it.
    plain = [str(cell.value) for cell in found]
    assert plain[:3] == texts[:3]
    assert plain[4:6] == [texts[4], "a" * 32_767]


@pytest.mark.chaos
def test_more_links_than_a_sheet_takes_stay_text_without_a_warning(tmp_path: Path) -> None:
    file = tmp_path / "report.xlsx"
    ReportFile(file).write(Report(), [_row(number) for number in range(1, 65_541)])
    with ZipFile(file) as parts:
        assert parts.read("xl/worksheets/sheet1.xml").count(b"<hyperlink ") == 65_530
