"""A dispatch by the cluster's program: what it does, what it prints, from wherever it is started."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pm_dagster_tests.cli.shell import UNKNOWN_JOB
from pm_dagster_tests.cluster.program import ENTRY, UNPACED, ClusterProgram, levels_after_the_dispatch, numbers_of
from pm_dagster_tests.ledger.postgres_control_table import eventually


def test_new_and_repair_rows_are_scheduled(program: ClusterProgram) -> None:
    program.add(6)
    program.add_repairs(3)
    program.add_repairs(1, repairs=4)

    report = program.numbers()

    assert report["read"] == report["scheduled"] == 10
    assert report["new"] == {"accepted": 6, "adopted": 0, "deferred": 0, "quarantined": 0}
    assert report["repair"] == {"accepted": 4, "adopted": 0, "deferred": 0, "quarantined": 0}
    assert [program.workspace.log.count(name) for name in ("run-now", "runs/get", "runs/repair")] == [6, 4, 4]
    assert program.statuses() == {"SCHEDULED": 10}


def test_refused_rows_are_numbers_and_no_failure(program: ClusterProgram) -> None:
    (unknown,) = program.add(job_id=UNKNOWN_JOB)
    (malformed,) = program.add(job_id=None)
    (good,) = program.add()

    done = program.run()

    assert done.returncode == 0
    assert numbers_of(done)["new"]["quarantined"] == 2
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["run", "id", "branch", "outcome", "status", "Databricks", "run", "reason"]
    assert [line.split()[:3] for line in lines[1:4]] == [
        [str(unknown), "new", "quarantined"],
        [str(malformed), "new", "quarantined"],
        [str(good), "new", "accepted"],
    ]
    assert str(UNKNOWN_JOB) in lines[1]
    assert levels_after_the_dispatch(done) == ["ERROR", "INFO"]
    assert "program finished read=3 scheduled=1 refused=2 left_for_later=0 " in done.stderr


def test_an_empty_view_is_a_success(program: ClusterProgram) -> None:
    done = program.run()
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 1
    assert numbers_of(done)["read"] == 0


def test_a_second_pass_does_nothing_more(program: ClusterProgram) -> None:
    program.add(3)
    assert program.numbers()["scheduled"] == 3
    assert program.numbers()["read"] == 0
    assert program.workspace.log.count("run-now") == 3


def test_limit_takes_the_oldest(program: ClusterProgram) -> None:
    first, second, _ = program.add(3)
    assert program.numbers("--limit", "2")["scheduled"] == 2
    assert program.sql("SELECT run_id FROM mm_run_plc WHERE run_sttus_name = 'SCHEDULED' ORDER BY 1") == [
        (first,),
        (second,),
    ]


def test_many_rows_are_not_all_shown(program: ClusterProgram) -> None:
    program.add(70)
    done = program.run(**UNPACED)
    assert "... and 10 more rows, none worse than accepted; --report FILE.xlsx writes all" in done.stdout
    assert len(done.stdout.splitlines()) == 1 + 60 + 2


def test_the_deadline_leaves_the_rest_waiting_and_says_so(program: ClusterProgram) -> None:
    program.add(40)
    done = program.run(PM_DEADLINE_SECONDS="1", PM_RATE_RUN_NOW="5")
    assert done.returncode == 0
    scheduled = numbers_of(done)["scheduled"]
    assert scheduled < 40
    assert program.statuses()["WAITING"] == 40 - scheduled
    assert "left" in done.stdout.splitlines()[1]


def test_sigterm_ends_the_pass_cleanly(program: ClusterProgram) -> None:
    program.add(100)
    process = program.start("--read", "driver", PM_RATE_RUN_NOW="10")
    eventually(lambda: program.workspace.log.count("run-now") >= 5, "five runs are started")
    process.send_signal(signal.SIGTERM)
    done = program.wait_for(process)

    assert done.returncode == 0, done.stderr
    report = numbers_of(done)
    assert 0 < report["scheduled"] < 100
    assert program.statuses() == {"SCHEDULED": report["scheduled"], "WAITING": 100 - report["scheduled"]}
    assert "stopped on request" in done.stderr
    assert program.numbers(**UNPACED)["scheduled"] == 100 - report["scheduled"]


def test_the_dispatcher_says_where_it_runs(program: ClusterProgram) -> None:
    program.add()
    program.numbers()
    ((actor,),) = program.sql("SELECT actor FROM process_manager.dispatcher")
    assert actor.startswith("process_manager.py on ")


def test_from_another_working_directory(program: ClusterProgram, tmp_path: Path) -> None:
    program.add()
    (tmp_path / "pm_dagster").mkdir()
    (tmp_path / "pm_dagster" / "__init__.py").write_text("raise ImportError('the wrong one')\n")
    done = program.wait_for(program.start_in(tmp_path, "--read", "driver"))
    assert done.returncode == 0, done.stderr
    assert program.statuses() == {"SCHEDULED": 1}


@pytest.mark.parametrize(
    "namespaces", ["{'__name__': '__main__'}", "{'__name__': '__main__'}, {}"], ids=["globals", "globals and locals"]
)
def test_executed_as_databricks_does_it(program: ClusterProgram, tmp_path: Path, namespaces: str) -> None:
    """No ``__file__``, the folder not on the path, and whatever follows in the same process still runs."""
    program.add(2)
    code = (
        "import sys\n"
        f"sys.argv = [{str(ENTRY)!r}, '--read', 'driver']\n"
        f"with open({str(ENTRY)!r}, 'rb') as file: text = file.read()\n"
        f"exec(compile(text, {str(ENTRY)!r}, 'exec'), {namespaces})\n"
        "print('reached', [name for name in ('dagster', 'pyspark', 'pandas', 'rich', 'click', 'sqlalchemy', 'azure')"
        " if name in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, env=program.environment(), cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "reached []"
    assert program.statuses() == {"SCHEDULED": 2}


def test_a_failure_tells_why_in_its_exception(program: ClusterProgram) -> None:
    """Databricks shows the exception's text on the run's page."""
    code = (
        f"import sys; sys.argv = [{str(ENTRY)!r}, '--read', 'driver']\n"
        f"with open({str(ENTRY)!r}, 'rb') as file: text = file.read()\n"
        f"try: exec(compile(text, {str(ENTRY)!r}, 'exec'), {{'__name__': '__main__'}})\n"
        "except SystemExit as end: print(end.code, end)"
    )
    environment = program.environment(PM_POSTGRES_URL="postgresql://someone:geheim@127.0.0.1:1/db")
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.startswith("1 the dispatch could not run: the database does not answer"), done.stderr
    assert "geheim" not in done.stdout + done.stderr


def test_no_module_beside_the_entry_hides_another() -> None:
    """A script's own folder comes first on the path."""
    hidden = {path.stem for path in ENTRY.parent.glob("*.py")} & (set(sys.stdlib_module_names) | {"pandas", "requests"})
    assert hidden == set()


def test_the_entry_is_no_notebook() -> None:
    assert not ENTRY.read_text().startswith("# Databricks notebook source")


def test_an_output_that_knows_only_ascii_does_not_end_the_pass(program: ClusterProgram) -> None:
    program.sql(
        "INSERT INTO mm_run_plc (wkf_job_id, run_sttus_name, file_name) VALUES (1001, 'WAITING', 'поставка.csv'),"
        " (NULL, 'WAITING', 'x')"
    )
    program.workspace.faults.add(
        "run-now", "status", status=400, code="INVALID_PARAMETER_VALUE", message="Job 1001: недоступно", count=None
    )
    ascii_only = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"}
    done = program.wait_for(program.start("--read", "driver", **ascii_only))
    assert done.returncode == 0, done.stderr
    assert numbers_of(done)["new"]["quarantined"] == 2
    assert r"\u043d\u0435\u0434\u043e" in done.stdout


@pytest.mark.parametrize("moment", ["0044-03-15 BC", "10000-01-01", "infinity"])
def test_a_time_that_python_cannot_hold_stops_no_row(program: ClusterProgram, moment: str) -> None:
    program.add(2)
    program.sql(
        "UPDATE mm_run_plc SET rgstr_file_time = %s WHERE run_id = (SELECT min(run_id) FROM mm_run_plc)", (moment,)
    )
    assert program.numbers()["scheduled"] == 2


def test_an_output_that_nobody_reads_does_not_fail_the_pass(program: ClusterProgram) -> None:
    program.add(3)
    process = program.start("--read", "driver")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 0, said
    assert "output cannot be written" in said
    assert "Traceback" not in said
    assert program.statuses() == {"SCHEDULED": 3}
