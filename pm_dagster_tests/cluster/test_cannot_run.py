"""What cannot be done ends with one clear line, a non-zero exit code and no secret."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn
from zipfile import ZipFile

import pytest

from pm_dagster.cluster.options import read_options
from pm_dagster.cluster.spark_read import session
from pm_dagster.dispatch.service import Dispatch
from pm_dagster.errors import ConfigurationError
from pm_dagster_tests.cluster.program import ClusterProgram, failure_line

_SECRETS = {
    "PM_POSTGRES_PASSWORD": "geheim-of-the-database",
    "MDM_CLIENT_SECRET": "geheim-of-mdm",
    "JFROG_TOKEN": "geheim-of-jfrog",
    "SKID_TOKEN": "geheim-of-skid",
    "ARM_CLIENT_SECRET": "geheim-of-azure",
}


def test_database_down(program: ClusterProgram) -> None:
    """In a process of its own: nothing stands beside the one line, and the exit code is the interpreter's."""
    down = "postgresql://someone:geheim@127.0.0.1:1/db"
    done = program.wait_for(program.start("--read", "driver", PM_POSTGRES_URL=down))
    assert 'dispatch could not run reason="the database does not answer' in failure_line(done)
    assert "geheim" not in done.stderr


def test_workspace_down_leaves_the_rows_waiting(program: ClusterProgram) -> None:
    program.add(5)
    done = program.run(DATABRICKS_HOST="http://127.0.0.1:1")
    assert "cannot connect" in failure_line(done)
    assert program.statuses() == {"WAITING": 5}
    assert program.numbers()["scheduled"] == 5


def test_wrong_token(program: ClusterProgram) -> None:
    program.add()
    done = program.run(DATABRICKS_TOKEN="wrong-token")
    assert "does not accept our credentials" in failure_line(done)
    assert "wrong-token" not in done.stderr


@pytest.mark.parametrize("token", ["with\na line break", "mit \u20ac"])
def test_a_token_that_no_request_can_carry(program: ClusterProgram, token: str) -> None:
    program.add()
    line = failure_line(program.run(DATABRICKS_TOKEN=token))
    assert "no request can be made" in line
    assert token[:5] not in line
    assert program.statuses() == {"WAITING": 1}


def test_authorities_that_are_not_there(program: ClusterProgram) -> None:
    program.add()
    host = "https://127.0.0.1:1"
    assert "no request can be made" in failure_line(
        program.run(DATABRICKS_HOST=host, REQUESTS_CA_BUNDLE="/nonexistent")
    )


def test_a_host_with_a_token_in_it_is_not_shown(program: ClusterProgram) -> None:
    line = failure_line(program.run(DATABRICKS_HOST="https://h.example.com/?token=geheim"))
    assert "geheim" not in line


def test_no_ledger(program_without_ledger: ClusterProgram) -> None:
    assert "pm init" in failure_line(program_without_ledger.run())


def test_a_setting_that_cannot_be_used(program: ClusterProgram) -> None:
    assert "PM_CONCURRENCY='many' cannot be used" in failure_line(program.run(PM_CONCURRENCY="many"))


def test_no_workspace_is_configured(program: ClusterProgram) -> None:
    assert "DATABRICKS_HOST" in failure_line(program.run(DATABRICKS_HOST="", DATABRICKS_TOKEN="", HOME="/nonexistent"))


def test_a_secret_that_is_not_there_is_named_by_its_reference(program: ClusterProgram, tmp_path: Path) -> None:
    line = failure_line(program.run(DATABRICKS_TOKEN=f"file://{tmp_path}/token"))
    assert "DATABRICKS_TOKEN" in line
    assert f"{tmp_path}/token" in line


@pytest.mark.parametrize(
    "arguments",
    [
        ["--read", "spark"],
        ["--limit", "0"],
        ["--limit", "-1"],
        ["--limit", "many"],
        ["--report", "report.csv"],
        ["--report", ""],
        ["--rep", "report.xlsx"],
        ["a row"],
    ],
)
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        read_options(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: process_manager.py")


def test_an_unknown_option_ends_the_process_with_the_usage(program: ClusterProgram) -> None:
    done = program.wait_for(program.start("--nonsense"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: process_manager.py")
    assert "unrecognized arguments: --nonsense" in done.stderr
    assert "Traceback" not in done.stderr


def test_wrong_usage_is_told_to_databricks_in_the_exception() -> None:
    with pytest.raises(SystemExit, match="unrecognized arguments: --nonsense") as caught:
        read_options(["--nonsense"])
    assert caught.value.code == 2


def test_help(program: ClusterProgram) -> None:
    done = program.run_with("--help")
    assert done.returncode == 0
    for words in ("--read", "--report FILE.xlsx", "--limit N", "DATABRICKS_", "could not"):
        assert words in done.stdout


def test_an_error_of_our_own_tells_its_type_and_no_secret(
    program: ClusterProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object) -> NoReturn:
        secrets = os.environ["DATABRICKS_TOKEN"] + os.environ["JFROG_TOKEN"]
        raise ZeroDivisionError("in the\nmiddle of " + secrets)

    monkeypatch.setattr(Dispatch, "read", read)
    done = program.run(**_SECRETS, DATABRICKS_AUTH_TYPE="pat")

    assert (done.returncode, done.stdout) == (1, "")
    last = done.stderr.splitlines()[-1]
    assert 'CRITICAL dispatch broken off reason="ZeroDivisionError: in the middle of' in last
    assert last.endswith('PM_DEBUG=1 shows where it comes from"')
    assert len(done.stderr.splitlines()) == 1

    in_full = program.run(**_SECRETS, DATABRICKS_AUTH_TYPE="pat", PM_DEBUG="1")
    assert "Traceback" in in_full.stderr
    for text in (done.stderr, in_full.stderr):
        assert program.workspace.token not in text
        assert "geheim" not in text


def test_without_pyspark_it_says_what_to_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyspark", None)
    monkeypatch.setitem(sys.modules, "pyspark.sql", None)
    with pytest.raises(ConfigurationError, match=r"^there is no Spark session .*--read driver") as caught:
        session()
    assert "\n" not in str(caught.value)


def test_a_database_on_a_socket_cannot_be_read_by_jdbc(program: ClusterProgram) -> None:
    line = failure_line(program.run_with())
    assert "JDBC speaks TCP only" in line
    assert "--read driver" in line


def test_no_secret_in_output_log_report_or_database(program: ClusterProgram, tmp_path: Path) -> None:
    told = " ".join([program.workspace.token, *_SECRETS.values()])
    program.add(3)
    program.add_repairs(1)
    program.sql(
        "INSERT INTO mm_run_plc (wkf_job_id, run_sttus_name, file_name) VALUES (NULL, 'WAITING', %s)",
        (_SECRETS["JFROG_TOKEN"],),
    )
    message = f"Job 1001, no: {told}"
    program.workspace.faults.add("*", "status", status=400, code="INVALID_PARAMETER_VALUE", message=message, count=None)

    done = program.run("--report", str(tmp_path / "report.xlsx"), **_SECRETS, DATABRICKS_AUTH_TYPE="pat")

    assert done.returncode == 0, done.stderr
    recorded = program.sql("SELECT string_agg(detail, ' ') FROM process_manager.event")[0][0]
    messages = program.sql("SELECT string_agg(state_msg, ' ') FROM mm_run_plc")[0][0]
    unpacked = _unzipped(tmp_path / "report.xlsx")
    for text in (done.stdout, recorded, messages, unpacked):
        assert "no: ***" in text
    for text in (done.stdout, done.stderr, recorded, messages, unpacked):
        assert [secret for secret in told.split() if secret in text] == []


def _unzipped(path: Path) -> str:
    with ZipFile(path) as archive:
        return "".join(archive.read(name).decode() for name in archive.namelist())
