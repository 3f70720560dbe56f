"""Runs of deployed jobs: several tasks, repairs, places and queues, and what the page shows of them."""

from __future__ import annotations

import re

import pytest
import requests
from databricks.sdk.errors import InvalidParameterValue
from databricks.sdk.service.jobs import Run, RunIf, TaskDependency

from pm_dagster.sandbox.workspace import LocalWorkspace
from pm_dagster_tests.sandbox.deployed import Deployed, result, results, until

GOOD, BAD = "print('fine')", "raise RuntimeError('bad')"
# Waits until a file of this name is in the workspace.
GATE = "import os, time\nprint('waits')\nwhile not os.path.exists('{}'): time.sleep(0.01)\n"


def chain(deployed: Deployed, **sources: str) -> int:
    """A job whose tasks run one after another, the last one first in its definition."""
    keys = list(sources)
    tasks = [
        deployed.task(key, sources[key], depends_on=[TaskDependency(before)] if before else None)
        for before, key in zip([None, *keys], keys, strict=False)
    ]
    return deployed.jobs_of(tasks[::-1])


def lives(run: Run) -> dict[str, str]:
    return {
        task.task_key: task.state.life_cycle_state.value
        for task in run.tasks or []
        if task.state and task.state.life_cycle_state
    }


def test_tasks_run_in_their_order_and_show_where_they_are(deployed: Deployed) -> None:
    run_id = deployed.start(chain(deployed, a=GOOD, b=GATE.format("b_may_end"), c=GOOD))
    until(lambda: deployed.output(run_id, "b").logs == "waits\n", "b runs")
    run = deployed.client.jobs.get_run(run_id)
    assert lives(run) == {"a": "TERMINATED", "b": "RUNNING", "c": "BLOCKED"}
    assert result(run)[0] == "RUNNING"
    ends = {task.task_key: bool(task.end_time) for task in run.tasks or []}
    assert ends == {"a": True, "b": False, "c": False}
    deployed.upload("", "b_may_end")
    run = deployed.ended(run_id)
    assert result(run)[1] == "SUCCESS"
    starts = [task.start_time or 0 for task in run.tasks or []]
    assert starts == sorted(starts)
    assert deployed.output(run_id, "a").logs == "fine\n"


def test_a_failed_task_stops_what_depends_on_it(deployed: Deployed) -> None:
    run = deployed.ended(deployed.start(chain(deployed, a=GOOD, b=BAD, c=GOOD)))
    assert results(run) == {"a": "SUCCESS", "b": "FAILED", "c": "UPSTREAM_FAILED"}
    assert lives(run)["c"] == "SKIPPED"
    assert result(run)[:2] == ("INTERNAL_ERROR", "FAILED")
    assert result(run)[2] == (
        "Task b failed with message: Workload failed, see run output for details."
        " This caused all downstream tasks to get skipped."
    )


@pytest.mark.parametrize(
    ("condition", "good", "bad", "mixed"),
    [
        (RunIf.ALL_SUCCESS, "SUCCESS", "UPSTREAM_FAILED", "UPSTREAM_FAILED"),
        (RunIf.NONE_FAILED, "SUCCESS", "UPSTREAM_FAILED", "UPSTREAM_FAILED"),
        (RunIf.ALL_DONE, "SUCCESS", "SUCCESS", "SUCCESS"),
        (RunIf.AT_LEAST_ONE_SUCCESS, "SUCCESS", "UPSTREAM_FAILED", "SUCCESS"),
        (RunIf.ALL_FAILED, "EXCLUDED", "SUCCESS", "UPSTREAM_FAILED"),
        (RunIf.AT_LEAST_ONE_FAILED, "EXCLUDED", "SUCCESS", "SUCCESS"),
    ],
)
def test_run_if(deployed: Deployed, condition: RunIf, good: str, bad: str, mixed: str) -> None:
    after = [TaskDependency("a"), TaskDependency("b")]
    ends = {}
    for a, b in ((GOOD, GOOD), (BAD, BAD), (GOOD, BAD)):
        last = deployed.task("last", GOOD, depends_on=after, run_if=condition)
        run = deployed.ended(deployed.start(deployed.jobs_of([deployed.task("a", a), deployed.task("b", b), last])))
        ends[a, b] = results(run)["last"]
        whole = "SUCCESS_WITH_FAILURES" if BAD in (a, b) else "SUCCESS"
        assert result(run)[1] == (whole if ends[a, b] in ("SUCCESS", "EXCLUDED") else "FAILED")
    assert list(ends.values()) == [good, bad, mixed]


def test_a_task_out_of_time_leaves_the_others_theirs(deployed: Deployed) -> None:
    slow = deployed.task("slow", "import time\ntime.sleep(60)", timeout_seconds=1)
    after = deployed.task("after", GOOD, depends_on=[TaskDependency("slow")])
    run = deployed.ended(deployed.start(deployed.jobs_of([slow, after, deployed.task("other", GOOD)])))
    assert results(run) == {"slow": "TIMEDOUT", "after": "UPSTREAM_FAILED", "other": "SUCCESS"}
    assert result(run)[:2] == ("TERMINATED", "TIMEDOUT")


def test_a_job_out_of_time_begins_no_other_task(deployed: Deployed) -> None:
    slow = deployed.task("slow", "import time\ntime.sleep(60)")
    after = deployed.task("after", GOOD, depends_on=[TaskDependency("slow")])
    job_id = deployed.jobs_of([slow, after, deployed.task("other", GOOD)], timeout_seconds=1)
    run = deployed.ended(deployed.start(job_id))
    assert results(run) == {"slow": "TIMEDOUT", "after": "UPSTREAM_FAILED", "other": "TIMEDOUT"}
    assert result(run)[:2] == ("TERMINATED", "TIMEDOUT")


def test_cancelling_leaves_the_rest_undone(deployed: Deployed) -> None:
    run_id = deployed.start(chain(deployed, a=GOOD, b=GATE.format("never"), c=GOOD, d=GOOD))
    until(lambda: deployed.output(run_id, "b").logs == "waits\n", "b runs")
    deployed.client.jobs.cancel_run(run_id)
    run = deployed.ended(run_id)
    assert results(run) == {"a": "SUCCESS", "b": "CANCELED", "c": "UPSTREAM_CANCELED", "d": "UPSTREAM_CANCELED"}
    assert result(run)[1] == "CANCELED"


def test_a_repair_runs_what_failed_with_the_settings_of_now(deployed: Deployed) -> None:
    job_id = chain(deployed, a="import sys\nprint('a')", b="import sys\nprint(sys.argv)\nraise RuntimeError", c=GOOD)
    run_id = deployed.start(job_id, python_params=["given"])
    assert results(deployed.ended(run_id)) == {"a": "SUCCESS", "b": "FAILED", "c": "UPSTREAM_FAILED"}
    deployed.upload("import sys\nprint(sys.argv[1:])", "b.py")
    deployed.client.jobs.repair_run(run_id, rerun_all_failed_tasks=True)
    run = deployed.ended(run_id)
    assert results(run) == {"a": "SUCCESS", "b": "SUCCESS", "c": "SUCCESS"}
    assert result(run)[1] == "SUCCESS"
    assert [(task.task_key, task.attempt_number) for task in run.tasks or []] == [
        ("a", 0), ("b", 0), ("c", 0), ("b", 1), ("c", 1),
    ]  # fmt: skip
    assert deployed.output(run_id, "b").logs == "['given']\n"
    first = next(task for task in run.tasks or [] if task.task_key == "b")
    assert deployed.client.jobs.get_run_output(first.run_id or 0).error == "RuntimeError"
    assert len(deployed.client.jobs.get_run(run_id, include_history=True).repair_history or []) == 2


def test_a_repair_of_a_deleted_jobs_run(deployed: Deployed) -> None:
    job_id = deployed.job(BAD)
    run_id = deployed.start(job_id)
    deployed.ended(run_id)
    deployed.client.jobs.delete(job_id)
    deployed.upload("print('mended')", "main.py")
    deployed.client.jobs.repair_run(run_id, rerun_all_failed_tasks=True, python_params=["{{job.repair_count}}"])
    assert result(deployed.ended(run_id))[1] == "SUCCESS"
    assert deployed.output(run_id).logs == "mended\n"


def test_a_run_of_chosen_tasks(deployed: Deployed) -> None:
    job_id = chain(deployed, a=BAD, b=GOOD)
    run = deployed.ended(deployed.start(job_id, only=["b"]))
    assert results(run) == {"b": "SUCCESS"}
    with pytest.raises(InvalidParameterValue, match="Task z does not exist"):
        deployed.start(job_id, only=["z"])


def test_a_busy_job_skips_or_queues(deployed: Deployed) -> None:
    job_id = deployed.job(GATE.format("go"))
    first = deployed.start(job_id, idempotency_token="t")
    skipped, queued = deployed.start(job_id, queue=False), [deployed.start(job_id, queue=True) for _ in range(2)]
    assert deployed.start(job_id, idempotency_token="t") == first
    assert result(deployed.ended(skipped)) == (
        "SKIPPED",
        "MAXIMUM_CONCURRENT_RUNS_REACHED",
        "Skipping this run because the limit of 1 maximum concurrent runs has been reached.",
    )
    assert [result(deployed.client.jobs.get_run(each))[0] for each in queued] == ["QUEUED", "QUEUED"]
    deployed.client.jobs.cancel_run(queued[0])
    assert result(deployed.ended(queued[0]))[1] == "CANCELED"
    deployed.upload("", "go")
    assert [result(deployed.ended(each))[1] for each in (first, queued[1])] == ["SUCCESS", "SUCCESS"]
    assert deployed.output(queued[0]).logs == ""
    assert deployed.output(skipped).logs == ""


def test_many_at_once(deployed: Deployed) -> None:
    job_id = deployed.job("import sys\nprint(sys.argv[1])", ["{{job.run_id}}"], max_concurrent_runs=5)
    runs = [deployed.start(job_id) for _ in range(20)]
    assert [deployed.ended(each).run_id for each in runs] == runs
    assert [int(deployed.output(each).logs or 0) for each in runs] == runs


def test_the_page_shows_what_happened(deployed: Deployed, empty: LocalWorkspace) -> None:
    run_id = deployed.start(chain(deployed, a="print('<script>alert(1)</script>')", b=GATE.format("go")))

    def page() -> str:
        answer = requests.get(f"{empty.host}/jobs/1/runs/{run_id}", timeout=10)
        assert answer.status_code == 200
        return answer.text

    until(lambda: "<pre>waits" in page(), "the page shows what is written")
    assert 'http-equiv="refresh"' in page()
    deployed.upload("", "go")
    deployed.ended(run_id)
    assert "<script>alert" not in page()
    assert "<pre>&lt;script&gt;alert(1)&lt;/script&gt;" in page()
    # So that whoever reads the output is left in peace.
    assert 'http-equiv="refresh"' not in page()
    missing = deployed.start(deployed.jobs_of([deployed.task("a", "", ["{{job.x}}"])]))
    deployed.ended(missing)
    text = requests.get(f"{empty.host}/jobs/1/runs/{missing}", timeout=10).text
    assert re.search(r"<pre>The parameters of task a could not be resolved: [^<]+</pre>", text)
    long = deployed.start(deployed.job("print('x' * 100_000 + 'end')"))
    deployed.ended(long)
    text = requests.get(f"{empty.host}/jobs/1/runs/{long}", timeout=10).text
    assert "The last 64 kB." in text
    assert "xend\n</pre>" in text
    assert len(text) < 80_000
