"""--read driver under the runtime's libraries: SDK 0.30 and its API 2.1, no Spark, the uploaded files alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from openpyxl import load_workbook

from pm_dagster_tests.cli.shell import JOB
from pm_dagster_tests.cluster.program import UNPACED, failure_line, numbers_of
from pm_dagster_tests.runtime.program import RuntimeProgram

pytestmark = pytest.mark.runtime


def test_a_thousand_rows_by_api_2_1(program: RuntimeProgram) -> None:
    program.add_many([None] * 700)
    program.add_many([program.workspace.state.add_run(JOB).run_id for _ in range(300)])

    report = program.numbers(**UNPACED)

    assert report["read"] == report["scheduled"] == 1000
    assert program.statuses() == {"SCHEDULED": 1000}
    log = program.workspace.log
    assert {name: log.count(name) for name in ("run-now", "runs/get", "runs/repair")} == {
        "run-now": 700,
        "runs/get": 300,
        "runs/repair": 300,
    }
    assert program.runs_per_row() == [1] * 700
    assert {call.path.split("/")[2] for call in log.entries() if "/jobs/" in call.path} == {"2.1"}


def test_the_report_by_pandas_1_5(program: RuntimeProgram, tmp_path: Path) -> None:
    program.sql(
        "INSERT INTO mm_run_plc (run_id, wkf_job_id, run_sttus_name) VALUES (9007199254740993, 1001, 'WAITING')"
    )
    program.add_repairs(1)
    done = program.run("--report", str(tmp_path / "re:port.xlsx"))
    assert done.returncode == 0, done.stderr
    sheet = load_workbook(tmp_path / "report.xlsx")["waiting jobs"]
    ids = {str(row[0]) for row in sheet.iter_rows(min_row=2, values_only=True)}
    assert "9007199254740993" in ids
    assert len(ids) == 2


def test_database_down_is_one_line(program: RuntimeProgram) -> None:
    done = program.run(PM_POSTGRES_URL="postgresql://someone:geheim@127.0.0.1:1/db")
    assert "the database does not answer" in failure_line(done)
    assert "geheim" not in done.stderr


def test_workspace_down_is_one_line(program: RuntimeProgram) -> None:
    program.add()
    assert "cannot connect" in failure_line(program.run(DATABRICKS_HOST="http://127.0.0.1:1"))
    assert program.statuses() == {"WAITING": 1}


def test_oauth_is_refused_in_one_line(program: RuntimeProgram) -> None:
    program.add()
    secrets = {"DATABRICKS_CLIENT_ID": "someone", "DATABRICKS_CLIENT_SECRET": "geheim-client", "DATABRICKS_TOKEN": ""}
    done = program.run(**secrets)
    assert failure_line(done)
    assert "geheim-client" not in done.stderr


def test_an_azure_reference_says_what_is_missing(program: RuntimeProgram) -> None:
    """The runtime has no azure-identity."""
    line = failure_line(program.run(PM_POSTGRES_PASSWORD="keyvault://some-vault/password"))
    assert "PM_POSTGRES_PASSWORD" in line
    assert "azure" in line


def test_a_credential_from_a_secret_scope(program: RuntimeProgram) -> None:
    url = program.database_url
    program.workspace.secrets.put("tp_dpf2cdl", "refDBjdbcURL", url)
    program.add()
    done = program.run(PM_POSTGRES_URL="databricks-secret://tp_dpf2cdl/refDBjdbcURL")
    assert done.returncode == 0, done.stderr
    assert numbers_of(done)["scheduled"] == 1
