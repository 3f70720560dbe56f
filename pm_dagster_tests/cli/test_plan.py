"""`pm plan`: a dispatch that writes nothing and starts nothing."""

from __future__ import annotations

from pm_dagster_tests.cli.shell import Shell

_TABLES = ("public.mm_run_plc", "process_manager.entry", "process_manager.event", "process_manager.dispatcher")


def _everything(shell: Shell) -> list[list[tuple[object, ...]]]:
    """All rows with the traces that writing or locking one leaves on it."""
    rows = [shell.sql(f"SELECT xmin::text, xmax::text, ctid::text, t.* FROM {name} t ORDER BY 3") for name in _TABLES]  # noqa: S608
    return [*rows, shell.sql("SELECT last_value, is_called FROM process_manager.dispatcher_dispatcher_id_seq")]


def test_a_look_up_without_an_answer_is_the_line_of_its_row(shell: Shell) -> None:
    silent, answered = shell.add_repairs(2)
    (new,) = shell.add()
    run = shell.sql("SELECT wkf_job_run_id FROM mm_run_plc WHERE run_id = %s", (silent,))[0][0]
    shell.workspace.faults.add("runs/get", "status", status=503, match=f"run_id={run}", count=None)
    rows = shell.json("plan")["rows"]
    assert [(row["run_id"], row["would"]) for row in rows] == [
        (silent, "look up"),
        (answered, "repair"),
        (new, "start"),
    ]
    assert "no answer" in rows[0]["why"]
    assert "503" in rows[0]["why"]


def test_a_workspace_that_answers_no_look_up_leaves_the_rest_of_the_plan(shell: Shell) -> None:
    repairs = shell.add_repairs(3)
    (new,) = shell.add()
    shell.workspace.faults.add("runs/get", "reset", count=None)
    rows = shell.json("plan")["rows"]
    assert [(row["run_id"], row["would"]) for row in rows] == [*((row, "look up") for row in repairs), (new, "start")]


def test_it_leaves_no_trace_of_itself(shell: Shell) -> None:
    shell.add_repairs(2)
    shell.add(3)
    shell.add(job_id=None)
    shell.sql("UPDATE mm_run_plc SET run_sttus_name = 'waiting' WHERE run_id = 2")
    before = _everything(shell)
    plan = shell.json("plan", "--limit", "3")
    assert len(plan["rows"]) == 3
    assert _everything(shell) == before
    assert shell.workspace.log.count(effect=True) == 0


def test_it_runs_where_nothing_can_be_written(shell: Shell) -> None:
    shell.add(2)
    shell.sql(
        "ALTER DATABASE " + shell.sql("SELECT current_database()")[0][0] + " SET default_transaction_read_only = on"
    )
    assert [row["would"] for row in shell.json("plan")["rows"]] == ["start", "start"]


def test_it_plans_what_the_dispatch_then_does(shell: Shell) -> None:
    """The same rows in the same order for the same reasons, beyond rows that are refused on the way to the limit."""
    shell.sql(
        "CREATE VIEW doubled AS SELECT * FROM mm_run_wait_vw UNION ALL SELECT * FROM mm_run_wait_vw WHERE run_id = 2"
    )
    shell.settings["PM_WAIT_VIEW"] = "doubled"
    shell.add(job_id=None)
    shell.add(2)
    shell.add_repairs(1, repairs=2)
    shell.add(run=4711)
    shell.add(2)
    planned = shell.json("plan", "--limit", "3")["rows"]
    assert [(row["run_id"], row["would"]) for row in planned] == [
        (1, "refuse"), (2, "refuse"), (3, "start"), (4, "repair"), (5, "start"),
    ]  # fmt: skip
    assert "stands 2 times" in planned[1]["why"]
    assert "does not exist any more" in planned[4]["why"]
    shell.json("dispatch", "--limit", "3")
    done = dict(shell.sql("SELECT run_id, run_sttus_name FROM mm_run_plc"))
    assert {row for row, status in done.items() if status == "SCHEDULED"} == {3, 4, 5}
    assert {row for row, status in done.items() if status == "FAILED"} == {1, 2}


def test_it_needs_no_workspace_where_nothing_is_looked_up(shell: Shell) -> None:
    shell.add()
    assert [row["would"] for row in shell.json("plan", DATABRICKS_TOKEN="wrong")["rows"]] == ["start"]
    shell.add_repairs(1)
    done = shell.pm("plan", DATABRICKS_TOKEN="wrong")
    assert done.returncode == 1
    assert "credentials" in done.stderr


def test_a_closing_that_would_be_refused_is_not_tried_and_the_help_says_so(shell: Shell) -> None:
    """To try it takes locks and fires the owner's triggers: a plan leaves no trace, a dispatch puts the row off."""
    shell.add()
    shell.sql("ALTER TABLE mm_run_plc ADD CONSTRAINT narrow CHECK (run_sttus_name <> 'SCHEDULED')")
    assert [row["would"] for row in shell.json("plan")["rows"]] == ["start"]
    shell.json("dispatch")
    assert shell.sql("SELECT run_sttus_name FROM mm_run_plc") == [("WAITING",)]
    assert shell.workspace.log.count(effect=True) == 0
    assert "The plan does not try that" in " ".join(shell.pm("plan", "--help").stdout.split())
