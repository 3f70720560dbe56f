"""--read jdbc on a real Spark 3.5.2 with the real JDBC driver: the driver's rows, and the same pass."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pm_dagster_tests.cluster import nasty_rows
from pm_dagster_tests.cluster.program import numbers_of
from pm_dagster_tests.runtime.program import RuntimeProgram, spark

pytestmark = pytest.mark.runtime

_RUN, _PREVIOUS = 2**53 + 1, 2**53 + 3


def _read(program: RuntimeProgram, **more: str) -> dict[str, Any]:
    done = program.reads(**more)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def test_spark_reads_what_the_driver_reads(program: RuntimeProgram) -> None:
    nasty_rows.lay_out(program.database_url)
    told = _read(program, **nasty_rows.SETTINGS)
    assert len(told["driver"]) == 5
    assert told["spark"] == told["driver"]


def test_the_password_is_in_no_plan(program: RuntimeProgram) -> None:
    told = _read(program)
    assert "JDBCRelation" in told["plan"]
    assert program.password not in told["plan"]


def test_a_pass_by_jdbc_keeps_every_digit(program: RuntimeProgram) -> None:
    state = program.workspace.state
    old = state.add_run(1001).run_id
    assert old > 2**53
    program.sql(
        "INSERT INTO mm_run_plc (run_id, wkf_job_id, wkf_job_run_id, run_sttus_name, file_name)"
        " VALUES (%s, 1001, NULL, 'WAITING', 'it''s \"new\" поставка'), (%s, 1001, %s, 'WAITING', NULL)",
        (_RUN, _PREVIOUS, old),
    )

    done = program.run_by_jdbc()

    assert done.returncode == 0, done.stderr
    report = numbers_of(done)
    assert report["read"] == report["scheduled"] == 2
    assert (report["new"]["accepted"], report["repair"]["accepted"]) == (1, 1)
    sent = [run for run in state.runs() if run.parameters.get("RUN_ID") == str(_RUN)]
    assert [run.parameters["FILE_NAME"] for run in sent] == ['it\'s "new" поставка']
    assert dict(program.sql("SELECT run_id, wkf_job_run_id FROM mm_run_plc")) == {
        _RUN: sent[0].run_id,
        _PREVIOUS: old,
    }


def _last(stderr: str) -> str:
    """Our one line, after what Spark has to say."""
    ours = [line for line in stderr.splitlines() if " CRITICAL " in line]
    assert len(ours) == 1, stderr
    assert " dispatch could not run " in ours[0]
    return ours[0]


def test_database_down_is_one_line(program: RuntimeProgram) -> None:
    done = program.run_by_jdbc(PM_POSTGRES_URL="postgresql://someone:geheim@127.0.0.1:1/db")
    assert (done.returncode, done.stdout) == (1, "")
    assert "the database does not answer" in _last(done.stderr)
    assert "geheim" not in done.stderr


def test_a_database_that_only_spark_cannot_reach_is_one_line(program: RuntimeProgram) -> None:
    """The driver speaks by the socket, Spark to a port where nothing listens."""
    program.add()
    done = program.reads("unreachable")
    assert done.returncode == 1
    (line,) = done.stdout.splitlines()
    assert line.startswith("ControlPlaneUnavailable: Spark could not read the waiting jobs: Connection to 127.0.0.1:1")
    assert program.statuses() == {"WAITING": 1}


def test_a_database_that_does_not_accept_spark(program: RuntimeProgram) -> None:
    done = program.reads("wrong-password")
    (line,) = done.stdout.splitlines()
    assert line.startswith("ConfigurationError: the database refused Spark's read: FATAL: password authentication")


def test_without_the_jdbc_driver_it_says_what_to_use(program: RuntimeProgram) -> None:
    program.add()
    done = program.run_by_jdbc(**spark(jars=False))
    assert done.returncode == 1
    assert "Spark has no PostgreSQL JDBC driver" in _last(done.stderr)
    assert "--read driver" in done.stderr


def test_without_java_it_says_what_to_use(program: RuntimeProgram) -> None:
    program.add()
    done = program.run_by_jdbc(JAVA_HOME="/nonexistent")
    assert done.returncode == 1
    assert "there is no Spark session" in _last(done.stderr)
    assert "--read driver" in done.stderr
    assert program.statuses() == {"WAITING": 1}


def test_the_password_is_in_no_log_of_spark(program: RuntimeProgram, tmp_path: Path) -> None:
    """At INFO, as on a cluster. At DEBUG Spark 3.5.2 writes it by itself (``BasicConnectionProvider``)."""
    (tmp_path / "log4j2.properties").write_text(
        "rootLogger.appenderRef.e.ref = e\nlogger.all.name = org\nlogger.all.level = info\n"
        "appender.e.type = Console\nappender.e.name = e\nappender.e.target = SYSTEM_ERR\n"
        "appender.e.layout.type = PatternLayout\nappender.e.layout.pattern = %p %c: %m%n%ex\n"
    )
    program.add()
    done = program.run_by_jdbc(SPARK_CONF_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "INFO org.apache.spark.scheduler.DAGScheduler" in done.stderr
    for secret in (program.password, program.workspace.token):
        shown = [line for line in (done.stdout + done.stderr).splitlines() if secret in line]
        assert shown == []
