"""The report file, read back by openpyxl: every row, exact ids, text that stays text, a safe name, whole or absent."""

from __future__ import annotations

import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from openpyxl import load_workbook

from pm_dagster.cluster.report import ReportFile
from pm_dagster.dispatch.report import Report
from pm_dagster_tests.cli.shell import JOB, UNKNOWN_JOB
from pm_dagster_tests.cluster.program import ClusterProgram, failure_line, levels_after_the_dispatch, numbers_of
from pm_dagster_tests.ledger.postgres_control_table import eventually

_BIG = 2**53 + 1


def _rows(path: Path) -> dict[str, dict[str, Any]]:
    """The rows by run id."""
    header, *rows = load_workbook(path)["waiting jobs"].iter_rows(values_only=True)
    records = [dict(zip(map(str, header), row, strict=True)) for row in rows]
    return {str(record["run_id"]): record for record in records}


def _numbers(path: Path) -> dict[str, Any]:
    return {str(name): value for name, value in load_workbook(path)["numbers"].iter_rows(min_row=2, values_only=True)}


def test_a_row_per_waiting_job_and_the_numbers(program: ClusterProgram, tmp_path: Path) -> None:
    (new,) = program.add()
    (repair,) = program.add_repairs(1, repairs=1)
    (unknown,) = program.add(job_id=UNKNOWN_JOB)
    file = tmp_path / "report.xlsx"

    report = program.numbers("--report", str(file))

    rows = _rows(file)
    assert {key: row["outcome"] for key, row in rows.items()} == {
        str(new): "accepted",
        str(repair): "accepted",
        str(unknown): "quarantined",
    }
    assert {row["branch"] for row in rows.values()} == {"new", "repair"}
    assert str(UNKNOWN_JOB) in rows[str(unknown)]["reason"]
    runs = {run.parameters.get("RUN_ID"): run.run_id for run in program.workspace.state.runs(JOB)}
    assert rows[str(new)]["databricks_run_id"] == str(runs[str(new)])
    assert rows[str(new)]["page_url"].startswith(program.workspace.host)
    assert rows[str(new)]["parameter FILE_NAME"] == "file.csv"
    assert rows[str(new)]["since"]
    numbers = _numbers(file)
    assert numbers["read"] == report["read"] == 3
    assert numbers["new, accepted"] == 1
    assert numbers["repair, accepted"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["report.xlsx"]


def test_ids_keep_every_digit_and_are_text(program: ClusterProgram, tmp_path: Path) -> None:
    program.sql(
        "INSERT INTO mm_run_plc (run_id, wkf_job_id, run_sttus_name, cntrt_id) VALUES (%s, 1001, 'WAITING', %s)",
        (_BIG, 2**63 - 1),
    )
    program.numbers("--report", str(tmp_path / "report.xlsx"))
    row = _rows(tmp_path / "report.xlsx")[str(_BIG)]
    assert row["run_id"] == str(_BIG)
    assert row["parameter CNTRT_ID"] == str(2**63 - 1)


def test_text_of_a_row_stays_text(program: ClusterProgram, tmp_path: Path) -> None:
    names = ["=cmd|' /C calc'!A0", "+1+1", "@SUM(A1)", "-2", "http://example.org/x", "internal:A1", "1e5", "поставка"]
    for name in names:
        program.sql(
            "INSERT INTO mm_run_plc (wkf_job_id, run_sttus_name, file_name) VALUES (1001, 'WAITING', %s)", (name,)
        )
    program.numbers("--report", str(tmp_path / "report.xlsx"))
    sheet = load_workbook(tmp_path / "report.xlsx")["waiting jobs"]
    column = [cell.value for cell in sheet[1]].index("parameter FILE_NAME") + 1
    cells = [sheet.cell(row, column) for row in range(2, 2 + len(names))]
    assert [cell.value for cell in cells] == names
    assert {(cell.data_type, cell.hyperlink) for cell in cells} == {("s", None)}


def test_the_link_opens_the_run(program: ClusterProgram, tmp_path: Path) -> None:
    program.add()
    program.numbers("--report", str(tmp_path / "report.xlsx"))
    sheet = load_workbook(tmp_path / "report.xlsx")["waiting jobs"]
    cell = sheet.cell(2, [cell.value for cell in sheet[1]].index("page_url") + 1)
    assert cell.hyperlink is not None
    assert cell.hyperlink.target == cell.value


@pytest.mark.parametrize(
    ("asked", "written"),
    [
        ("re:po?rt*<1>.xlsx", "report1.xlsx"),
        ("=cmd|calc.xlsx", "=cmdcalc.xlsx"),
        ("CON.xlsx", "CON_.xlsx"),
        ("a\nb\x07.xlsx", "ab.xlsx"),
        ("отчёт.XLSX", "отчёт.xlsx"),
        ("x" * 250 + ".xlsx", "x" * 240 + ".xlsx"),
    ],
)
def test_the_name_is_made_safe(tmp_path: Path, asked: str, written: str) -> None:
    file = ReportFile(tmp_path / asked)
    file.write(Report(), [])
    assert file.path == tmp_path / written
    assert list(tmp_path.iterdir()) == [file.path]


def test_a_hostile_name_on_the_command_line(program: ClusterProgram, tmp_path: Path) -> None:
    done = program.run("--report", str(tmp_path / "=cmd|' calc'!A0\n.xlsx"))
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.iterdir()
    assert file.name == "=cmd' calc'!A0.xlsx"
    assert f'report file written file="{file}"' in done.stderr


def test_an_earlier_report_is_replaced(program: ClusterProgram, tmp_path: Path) -> None:
    file = tmp_path / "report.xlsx"
    program.add()
    program.numbers("--report", str(file))
    program.numbers("--report", str(file))
    assert _rows(file) == {}


@pytest.mark.parametrize(
    ("asked", "named"),
    [("nowhere/report.xlsx", "no folder"), ("???.xlsx", "no character of the name"), ("d.xlsx", "is a folder")],
)
def test_a_place_that_cannot_be_used_is_said_before_anything_is_sent(
    program: ClusterProgram, tmp_path: Path, asked: str, named: str
) -> None:
    (tmp_path / "d.xlsx").mkdir()
    program.add()
    assert named in failure_line(program.run("--report", str(tmp_path / asked)))
    assert program.statuses() == {"WAITING": 1}


@pytest.mark.parametrize("library", ["pandas", "xlsxwriter", "pathvalidate"])
def test_a_missing_library_is_said_before_anything_is_sent(
    program: ClusterProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    program.add()
    monkeypatch.setitem(sys.modules, library, None)
    done = program.run("--report", str(tmp_path / "report.xlsx"))
    assert library in failure_line(done)
    assert "install them" in done.stderr
    assert program.statuses() == {"WAITING": 1}


def test_a_report_that_cannot_be_written_leaves_the_pass_and_its_numbers(
    program: ClusterProgram, tmp_path: Path
) -> None:
    folder = tmp_path / "reports"
    folder.mkdir()
    program.add(20)

    def remove_the_folder() -> None:
        eventually(lambda: program.workspace.log.count("run-now") > 0, "the dispatch has begun")
        shutil.rmtree(folder)

    with ThreadPoolExecutor(1) as helper:
        removed = helper.submit(remove_the_folder)
        done = program.run("--report", str(folder / "report.xlsx"), PM_RATE_RUN_NOW="10")
        removed.result()

    assert done.returncode == 1
    assert numbers_of(done)["scheduled"] == 20
    assert program.statuses() == {"SCHEDULED": 20}
    assert levels_after_the_dispatch(done) == ["ERROR", "INFO"]
    assert f"the report file {folder / 'report.xlsx'} could not be written" in done.stderr


def test_rows_that_were_not_sent_are_in_it(program: ClusterProgram, tmp_path: Path) -> None:
    program.add(30)
    program.numbers("--report", str(tmp_path / "report.xlsx"), PM_DEADLINE_SECONDS="1", PM_RATE_RUN_NOW="5")
    outcomes = [row["outcome"] for row in _rows(tmp_path / "report.xlsx").values()]
    assert len(outcomes) == 30
    assert set(outcomes) == {"accepted", "left"}
