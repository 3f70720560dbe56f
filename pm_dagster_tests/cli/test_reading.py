"""The commands that only read, and `pm redrive`."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pm_dagster_tests.cli.shell import UNKNOWN_JOB, Shell

_HEAVY = (
    "alembic",
    "azure",
    "dagster",
    "databricks",
    "google",
    "numpy",
    "pandas",
    "psycopg2",
    "requests",
    "sqlalchemy",
)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['pm', '--help']\n"
        "from pm_dagster.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: code = end.code\n"
        f"print('HEAVY', [m for m in {_HEAVY} if m in sys.modules], code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY [] 0"
    for words in ("pm init", "pm doctor", "pm plan", "pm dispatch", "pm explain", "PM_POSTGRES_URL", "Exit codes"):
        assert words in done.stdout


@pytest.mark.parametrize("name", ["init", "doctor", "plan", "dispatch", "status", "explain", "redrive", "sandbox"])
def test_every_command_has_help(name: str) -> None:
    command = [sys.executable, "-m", "pm_dagster.cli", name, "--help"]
    assert "Usage: pm" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _tables(shell: Shell) -> list[list[tuple[object, ...]]]:
    names = ("mm_run_plc", "process_manager.entry", "process_manager.event", "process_manager.dispatcher")
    return [shell.sql(f"SELECT * FROM {name} ORDER BY 1") for name in names]  # noqa: S608 names are ours


def test_plan_says_what_dispatch_does_and_writes_nothing(shell: Shell) -> None:
    (new,) = shell.add()
    (repair,) = shell.add_repairs(1, repairs=2)
    (succeeded,) = shell.add(run=shell.workspace.state.add_run(1001, outcome="succeed").run_id)
    (gone,) = shell.add(run=4711)
    (malformed,) = shell.add(job_id=None)
    before = _tables(shell)

    planned = {row["run_id"]: row["would"] for row in shell.json("plan")["rows"]}

    assert planned == {new: "start", repair: "repair", succeeded: "adopt", gone: "start", malformed: "refuse"}
    assert _tables(shell) == before
    assert shell.workspace.log.count(effect=True) == 0
    shell.json("dispatch")
    assert shell.json("plan")["rows"] == []


def test_status_counts(shell: Shell) -> None:
    shell.add(2)
    (unknown,) = shell.add(job_id=UNKNOWN_JOB)
    assert shell.json("status")["backlog"]["ready"] == 3
    shell.json("dispatch")
    status = shell.json("status")
    assert status["backlog"]["ready"] == 0
    assert [row["run_id"] for row in status["quarantined"]] == [unknown]
    assert {row["state"]: row["entries"] for row in status["ledger"]} == {"SCHEDULED": 2, "QUARANTINED": 1}
    assert status["dispatchers"][0]["ended_as"] == "done"


def test_explain_tells_the_whole_story(shell: Shell) -> None:
    (row,) = shell.add_repairs(1, repairs=1)
    assert "no dispatch has taken it yet" in shell.json("explain", str(row))["why"]
    shell.json("dispatch")
    story = shell.json("explain", str(row))
    assert story["why"].startswith("SCHEDULED")
    kinds = [event["kind"] for event in story["generations"][0]["events"]]
    assert kinds == ["claimed", "answer", "intent", "answer", "accepted", "closed"]
    assert story["generations"][0]["page_url"].startswith(shell.workspace.host)
    assert "repair" in shell.pm("explain", str(row)).stdout


def test_explain_of_rows_that_wait_untouched(shell: Shell) -> None:
    (row,) = shell.add()
    (other,) = shell.add()
    shell.workspace.faults.add("run-now", "status", status=503, count=None)
    shell.pm("dispatch", "--limit", "1", PM_CALL_TRIES="1", PM_SETTLE_SECONDS="600")
    why = shell.json("explain", str(row))["why"]
    assert "no dispatch has taken it yet" in shell.json("explain", str(other))["why"]
    assert "503" in why


def test_explain_unknown_row(shell: Shell) -> None:
    done = shell.pm("explain", "4711")
    assert done.returncode == 1
    assert "4711" in done.stderr


def test_redrive_only_refused_rows_and_twice(shell: Shell) -> None:
    (refused,) = shell.add(job_id=UNKNOWN_JOB)
    (good,) = shell.add()
    shell.json("dispatch")
    both = (str(refused), str(good))

    assert shell.json("redrive", *both)["redriven"] == [refused]
    assert shell.json("redrive", *both)["redriven"] == []
    assert shell.statuses() == {"WAITING": 1, "SCHEDULED": 1}

    shell.workspace.state.add_job("late", job_id=UNKNOWN_JOB)
    assert shell.json("dispatch")["scheduled"] == 1
    assert [entry["generation"] for entry in shell.json("explain", str(refused))["generations"]] == [1, 2]


def test_redrive_leaves_a_row_alone_that_failed_by_itself(shell: Shell) -> None:
    (row,) = shell.add()
    shell.json("dispatch")
    shell.sql("UPDATE mm_run_plc SET run_sttus_name = 'FAILED'")
    assert shell.json("redrive", str(row)) == {
        "redriven": [],
        "left_alone": {str(row): "its status is FAILED, but Process Manager did not refuse it"},
    }


def test_doctor_green_and_red(shell: Shell) -> None:
    shell.add(2)
    assert shell.json("doctor")["ok"] is True
    shell.add(job_id=UNKNOWN_JOB)
    checks = shell.json_and_code(1, "doctor")["checks"]
    assert [c["check"] for c in checks if not c["ok"]] == ["jobs of the waiting rows"]


def test_doctor_proposes_an_index_and_stays_green(shell: Shell) -> None:
    """The owner may do without; it is shown to people too, with the statement as it can be run."""
    (check,) = [c for c in shell.json("doctor")["checks"] if c["check"] == "index"]
    assert check == {"check": "index", "ok": True, "found": "none is missing on public.mm_run_plc", "remedy": ""}
    shell.sql("DROP INDEX mm_run_plc_waiting_ix")
    shell.sql("INSERT INTO mm_run_plc (run_sttus_name) SELECT 'SUCCEEDED' FROM generate_series(1, 11000)")
    shell.sql("ANALYZE mm_run_plc")
    (check,) = [c for c in shell.json("doctor")["checks"] if c["check"] == "index"]
    assert check["ok"]
    assert check["found"].startswith("WARNING: no index on public.mm_run_plc finds the rows that wait")
    statement = (
        'CREATE INDEX CONCURRENTLY ON "public"."mm_run_plc" ("rgstr_file_time", "run_id")'
        " WHERE \"run_sttus_name\" = 'WAITING'"
    )
    assert check["remedy"] == f"have the owner of the table run: {statement}"
    assert statement in " ".join(shell.pm("doctor").stdout.split())
    assert shell.sql("SELECT count(*) FROM pg_indexes WHERE tablename = 'mm_run_plc'") == [(1,)]


def test_doctor_names_what_is_wrong(bare_shell: Shell) -> None:
    def red(**more: str) -> list[str]:
        checks = bare_shell.json_and_code(1, "doctor", **more)["checks"]
        return [check["check"] for check in checks if not check["ok"]]

    assert red() == ["ledger"]
    assert red(PM_POSTGRES_URL="postgresql://127.0.0.1:1/db") == ["database"]
    assert red(PM_WAIT_VIEW="nothing_here") == ["view and table", "ledger"]
    assert red(DATABRICKS_TOKEN="wrong-token") == ["ledger", "workspace"]


def test_doctor_names_missing_privileges(shell: Shell) -> None:
    shell.sql("CREATE ROLE guest LOGIN; GRANT USAGE ON SCHEMA process_manager TO guest")
    shell.sql("GRANT SELECT ON mm_run_wait_vw, process_manager.alembic_version TO guest")
    try:
        checks = shell.json_and_code(1, "doctor", PGOPTIONS="-c role=guest")["checks"]
    finally:
        shell.sql("DROP OWNED BY guest; DROP ROLE guest")
    found = {check["check"]: check["found"] for check in checks if not check["ok"]}
    assert "UPDATE (run_sttus_name) on public.mm_run_plc" in found["privileges"]
    assert "INSERT on process_manager.entry" in found["privileges"]


def test_doctor_tells_of_a_schema_in_which_everybody_may_create(shell: Shell) -> None:
    """What somebody makes there, an operator for one, could run with our rights; Postgres before 15 began so."""
    shell.sql("GRANT CREATE ON SCHEMA public TO PUBLIC")
    found = {check["check"]: check["found"] for check in shell.json("doctor")["checks"]}
    assert "every database user may create objects in schema public" in found["privileges"]
