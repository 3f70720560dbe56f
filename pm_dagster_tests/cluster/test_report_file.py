"""The report file, read back by openpyxl: every row, exact ids, text that stays text, a safe name, whole or absent."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from openpyxl import load_workbook

from pm_dagster.cluster.report_file import ReportFile
from pm_dagster.dispatch.report import Report
from pm_dagster_tests.cli.world import JOB, UNKNOWN_JOB
from pm_dagster_tests.cluster.world import ENTRY, ClusterWorld, numbers_of, the_line
from pm_dagster_tests.ledger.world import eventually

_BIG = 2**53 + 1


def _rows(path: Path) -> dict[str, dict[str, Any]]:
    """The rows by run id."""
    header, *rows = load_workbook(path)["waiting jobs"].iter_rows(values_only=True)
    records = [dict(zip(map(str, header), row, strict=True)) for row in rows]
    return {str(record["run_id"]): record for record in records}


def _numbers(path: Path) -> dict[str, Any]:
    return {str(name): value for name, value in load_workbook(path)["numbers"].iter_rows(min_row=2, values_only=True)}


def test_a_row_per_waiting_job_and_the_numbers(world: ClusterWorld, tmp_path: Path) -> None:
    (new,) = world.add()
    (repair,) = world.add_repairs(1, repairs=1)
    (unknown,) = world.add(job_id=UNKNOWN_JOB)
    file = tmp_path / "report.xlsx"

    report = world.numbers("--report", str(file))

    rows = _rows(file)
    assert {key: row["outcome"] for key, row in rows.items()} == {
        str(new): "accepted",
        str(repair): "accepted",
        str(unknown): "quarantined",
    }
    assert {row["branch"] for row in rows.values()} == {"new", "repair"}
    assert str(UNKNOWN_JOB) in rows[str(unknown)]["reason"]
    runs = {run.parameters.get("RUN_ID"): run.run_id for run in world.workspace.state.runs(JOB)}
    assert rows[str(new)]["databricks_run_id"] == str(runs[str(new)])
    assert rows[str(new)]["page_url"].startswith(world.workspace.host)
    assert rows[str(new)]["parameter FILE_NAME"] == "file.csv"
    assert rows[str(new)]["since"]
    numbers = _numbers(file)
    assert numbers["read"] == report["read"] == 3
    assert numbers["new, accepted"] == 1
    assert numbers["repair, accepted"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["report.xlsx"]


def test_ids_keep_every_digit_and_are_text(world: ClusterWorld, tmp_path: Path) -> None:
    world.sql(
        "INSERT INTO mm_run_plc (run_id, wkf_job_id, run_sttus_name, cntrt_id) VALUES (%s, 1001, 'WAITING', %s)",
        (_BIG, 2**63 - 1),
    )
    world.numbers("--report", str(tmp_path / "report.xlsx"))
    row = _rows(tmp_path / "report.xlsx")[str(_BIG)]
    assert row["run_id"] == str(_BIG)
    assert row["parameter CNTRT_ID"] == str(2**63 - 1)


def test_text_of_a_row_stays_text(world: ClusterWorld, tmp_path: Path) -> None:
    names = ["=cmd|' /C calc'!A0", "+1+1", "@SUM(A1)", "-2", "http://example.org/x", "internal:A1", "1e5", "поставка"]
    for name in names:
        world.sql(
            "INSERT INTO mm_run_plc (wkf_job_id, run_sttus_name, file_name) VALUES (1001, 'WAITING', %s)", (name,)
        )
    world.numbers("--report", str(tmp_path / "report.xlsx"))
    sheet = load_workbook(tmp_path / "report.xlsx")["waiting jobs"]
    column = [cell.value for cell in sheet[1]].index("parameter FILE_NAME") + 1
    cells = [sheet.cell(row, column) for row in range(2, 2 + len(names))]
    assert [cell.value for cell in cells] == names
    assert {(cell.data_type, cell.hyperlink) for cell in cells} == {("s", None)}


def test_the_link_opens_the_run(world: ClusterWorld, tmp_path: Path) -> None:
    world.add()
    world.numbers("--report", str(tmp_path / "report.xlsx"))
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


def test_a_hostile_name_on_the_command_line(world: ClusterWorld, tmp_path: Path) -> None:
    done = world.enter("--report", str(tmp_path / "=cmd|' calc'!A0\n.xlsx"))
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.iterdir()
    assert file.name == "=cmd' calc'!A0.xlsx"
    assert f"report written to {file}" in done.stderr


def test_an_earlier_report_is_replaced(world: ClusterWorld, tmp_path: Path) -> None:
    file = tmp_path / "report.xlsx"
    world.add()
    world.numbers("--report", str(file))
    world.numbers("--report", str(file))
    assert _rows(file) == {}


@pytest.mark.parametrize(
    ("asked", "named"),
    [("nowhere/report.xlsx", "no folder"), ("???.xlsx", "nothing of the name"), ("d.xlsx", "is a folder")],
)
def test_a_place_that_cannot_be_used_is_said_before_anything_is_sent(
    world: ClusterWorld, tmp_path: Path, asked: str, named: str
) -> None:
    (tmp_path / "d.xlsx").mkdir()
    world.add()
    assert named in the_line(world.enter("--report", str(tmp_path / asked)))
    assert world.statuses() == {"WAITING": 1}


@pytest.mark.parametrize("library", ["pandas", "xlsxwriter", "pathvalidate"])
def test_a_missing_library_is_said_before_anything_is_sent(world: ClusterWorld, tmp_path: Path, library: str) -> None:
    world.add()
    code = (
        f"import sys; sys.path.insert(0, {str(ENTRY.parents[2])!r}); sys.modules[{library!r}] = None\n"
        "from pm_dagster.cluster.entry import main\n"
        f"sys.exit(main(['--read', 'driver', '--report', {str(tmp_path / 'report.xlsx')!r}]))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=world.environment(), capture_output=True, text=True, check=False, timeout=120)
    assert library in the_line(done)
    assert "install them" in done.stderr
    assert world.statuses() == {"WAITING": 1}


def test_a_report_that_cannot_be_written_leaves_the_pass_and_its_numbers(world: ClusterWorld, tmp_path: Path) -> None:
    folder = tmp_path / "reports"
    folder.mkdir()
    world.add(20)
    process = world.start("--read", "driver", "--report", str(folder / "report.xlsx"), PM_RATE_RUN_NOW="10")
    eventually(lambda: world.workspace.log.count("run-now") > 0, "the pass has begun")
    shutil.rmtree(folder)
    done = world.ended(process)

    assert done.returncode == 1
    assert numbers_of(done)["scheduled"] == 20
    assert world.statuses() == {"SCHEDULED": 20}
    levels = [line.split()[1] for line in done.stderr.splitlines() if " process_manager: " in line]
    assert levels == ["ERROR", "INFO"]
    assert f"the pass ran, but the report {folder / 'report.xlsx'} could not be written" in done.stderr


def test_rows_that_were_not_sent_are_in_it(world: ClusterWorld, tmp_path: Path) -> None:
    world.add(30)
    world.numbers("--report", str(tmp_path / "report.xlsx"), PM_DEADLINE_SECONDS="1", PM_RATE_RUN_NOW="5")
    outcomes = [row["outcome"] for row in _rows(tmp_path / "report.xlsx").values()]
    assert len(outcomes) == 30
    assert set(outcomes) == {"accepted", "left"}
