"""A deployed Spark Python task executes: how it is started, what it sees, what its end means."""

from __future__ import annotations

import json
import os
import re
import threading
from pathlib import Path

import pytest
from databricks.sdk.errors import InvalidParameterValue
from databricks.sdk.service.compute import Library, MavenLibrary, PythonPyPiLibrary
from databricks.sdk.service.jobs import JobParameterDefinition, JobSettings, NotebookTask, Source, SparkPythonTask, Task

from pm_dagster.sandbox.workspace import LocalWorkspace
from pm_dagster_tests.sandbox.deployed import HOME, Deployed, result

FAILED = "Task main failed with message: Workload failed, see run output for details."


def test_success(deployed: Deployed) -> None:
    run, output = deployed.ran(deployed.job("import sys\nprint('out')\nprint('err', file=sys.stderr)\nprint('end')"))
    assert result(run) == ("TERMINATED", "SUCCESS", "")
    assert (output.logs, output.logs_truncated, output.error) == ("out\nerr\nend\n", False, None)
    assert run.tasks
    assert run.start_time
    assert run.end_time
    assert run.start_time <= (run.tasks[0].start_time or 0) <= (run.tasks[0].end_time or 0) <= run.end_time


def test_an_exception(deployed: Deployed) -> None:
    source = "def load():\n    raise ValueError('no such file')\nload()\n"
    run, output = deployed.ran(deployed.job(source))
    assert result(run) == ("INTERNAL_ERROR", "FAILED", FAILED)
    assert run.tasks
    assert run.tasks[0].state
    assert run.tasks[0].state.life_cycle_state
    assert run.tasks[0].state.life_cycle_state.value == "TERMINATED"
    assert output.error == "ValueError: no such file"
    trace = (output.error_trace or "").splitlines()
    assert [trace[0], trace[-1]] == ["Traceback (most recent call last):", "ValueError: no such file"]
    assert re.search(r'File ".*main\.py", line 2, in load', output.error_trace or "")
    assert "launcher" not in (output.error_trace or "")
    assert output.logs == output.error_trace


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("import sys; sys.exit(0)", "SystemExit: 0"),
        ("import sys; sys.exit()", "SystemExit"),
        ("raise SystemExit('that was it')", "SystemExit: that was it"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("x = (", "SyntaxError: '(' was never closed (main.py, line 1)"),
        ("class Odd(Exception):\n  def __str__(self): raise OSError\nraise Odd", "Odd"),
        ("import os; os._exit(0)", "The Python process exited with exit code 0."),
        ("import os; os._exit(3)", "The Python process exited with exit code 3."),
        ("import os; os.abort()", "The Python process exited with exit code 134 (SIGABRT)."),
        ("import os; os.kill(os.getpid(), 9)", "The Python process exited with exit code 137 (SIGKILL)."),
        ("raise ValueError('half of a pair: ' + chr(0xd800))", "ValueError: half of a pair: ?"),
        ("raise ValueError('x' * 1_000_000)", "ValueError: " + "x" * 9_988),
    ],
    ids=lambda value: value[:40],
)
def test_other_ways_to_fail(deployed: Deployed, source: str, error: str) -> None:
    """Only a file that is executed to its end succeeds."""
    run, output = deployed.ran(deployed.job(source))
    assert result(run) == ("INTERNAL_ERROR", "FAILED", FAILED)
    assert output.error == error
    assert len(output.error_trace or "") <= 100_000


def test_how_the_file_is_executed(deployed: Deployed) -> None:
    deployed.upload("def greet():\n    return 'a module beside it'\n", "beside.py")
    source = """
import beside, inspect, json, os, sys, threading
print(json.dumps({
    "name": __name__, "file": "__file__" in globals(), "main": sys.modules["__main__"].__dict__ is globals(),
    "argv": sys.argv[1:], "argv0": sys.argv[0] == inspect.currentframe().f_code.co_filename, "beside": beside.greet(),
    "first": os.path.samefile(sys.path[0], os.getcwd()), "files": sorted(os.listdir()), "stdin": sys.stdin.read(),
    "threads": threading.active_count(), "encoding": [sys.stdout.encoding, sys.getfilesystemencoding()],
    "ours": [name for name in sys.modules if name.startswith("pm_dagster")], "flags": "annotations" in globals(),
}))
"""
    _, output = deployed.ran(deployed.job(source, ["a b", "", "ü", "--x=1"]))
    assert json.loads(output.logs or "") == {
        "name": "__main__", "file": False, "main": True, "argv": ["a b", "", "ü", "--x=1"], "argv0": True,
        "beside": "a module beside it", "first": True, "files": ["beside.py", "main.py"], "stdin": "", "threads": 1,
        "encoding": ["utf-8", "utf-8"], "ours": [], "flags": False,
    }  # fmt: skip


def test_the_environment_is_the_clusters(deployed: Deployed, empty: LocalWorkspace) -> None:
    empty.secrets.put("scope", "key", "pa$$ {{word}}\n")
    variables = {
        "PLAIN": "plain", "SECRET": "{{secrets/scope/key}}", "TWO": "<{{secrets/scope/key}}{{secrets/scope/key}}>",
        "PYSPARK_PYTHON": "/databricks/python3/bin/python3", "DATABRICKS_HOST": "from the job",
    }  # fmt: skip
    leaks = dict.fromkeys(("PM_SCHEMA", "DATABRICKS_TOKEN", "PGPASSWORD", "ARM_CLIENT_SECRET", "OTHER"), "leaked")
    source = "import json, os\nprint(json.dumps(dict(os.environ)))\n"
    job_id = deployed.job(source, variables=variables)
    before = dict(os.environ)
    os.environ.update(leaks)
    try:
        _, output = deployed.ran(job_id)
    finally:
        os.environ.clear()
        os.environ.update(before)
    seen = json.loads(output.logs or "")
    assert {name: seen.pop(name) for name in variables} == {
        **variables, "SECRET": "pa$$ {{word}}\n", "TWO": "<pa$$ {{word}}\npa$$ {{word}}\n>",
    }  # fmt: skip
    home, temporary = Path(seen.pop("HOME")), Path(seen.pop("TMPDIR"))
    assert seen == {"PATH": before["PATH"], "LANG": "C.UTF-8"}
    assert home != Path.home()
    assert not home.exists()
    assert not temporary.exists()


def test_parameters_and_references(deployed: Deployed) -> None:
    arguments = [
        "{{job.id}}/{{job.run_id}}", "{{job.name}}:{{task.name}}", "<{{job.parameters.given}}>",
        "{{job.parameters.`a b`}}", "{{job.parameters.default}}", "{{unknown}} {job.id} {{job.id}", "{{{job.id}}}",
        "{{job.repair_count}}",
    ]  # fmt: skip
    declared = [JobParameterDefinition(name=name, default="of the job") for name in ("given", "default", "a b")]
    job_id = deployed.job("import sys\nprint(sys.argv[1:])", arguments, parameters=declared)
    run, output = deployed.ran(job_id, job_parameters={"given": "{{job.id}}"})
    assert (output.logs or "").strip() == str(
        [
            f"{job_id}/{run.run_id}", "deployed:main", "<{{job.id}}>", "of the job", "of the job",
            "{{unknown}} {job.id} {{job.id}", f"{{{job_id}}}", "0",
        ]
    )  # fmt: skip
    _, output = deployed.ran(job_id, python_params=["--limit", "{{task.name}}"])
    assert (output.logs or "").strip() == "['--limit', 'main']"
    with pytest.raises(InvalidParameterValue, match="ASCII"):
        deployed.start(job_id, python_params=["ü"])
    with pytest.raises(InvalidParameterValue, match="10000 bytes"):
        deployed.start(job_id, python_params=["x" * 10_000])


def test_output_in_any_script(deployed: Deployed) -> None:
    source = "import sys\nprint('żółw 漢字 🐢')\nsys.stdout.buffer.write(b'\\xff\\x00\\n')\nprint('\\udc80')"
    _, output = deployed.ran(deployed.job(source))
    assert output.logs == "żółw 漢字 🐢\n\ufffd\x00\n\ufffd\n"


def test_of_much_output_the_end_is_kept(deployed: Deployed) -> None:
    """11 MB of lines of 16 bytes, in characters of two: the cut falls within one."""
    source = "for number in range(700_000):\n    print(f'{number:07}' + 'üüüü')\nprint('end')"
    run, output = deployed.ran(deployed.job(source))
    assert result(run)[1] == "SUCCESS"
    logs = output.logs or ""
    assert output.logs_truncated is True
    assert logs.endswith("0699998üüüü\n0699999üüüü\nend\n")
    assert 5 * 1024 * 1024 - 2 <= len(logs.encode()) <= 5 * 1024 * 1024
    assert "\ufffd" not in logs


def test_six_megabytes_are_cut_and_five_are_not(deployed: Deployed) -> None:
    for size, cut in ((5 * 1024 * 1024, False), (6 * 1024 * 1024, True)):
        _, output = deployed.ran(deployed.job(f"import sys\nsys.stdout.write('x' * {size})"))
        assert (len(output.logs or ""), output.logs_truncated) == (5 * 1024 * 1024, cut)


def test_a_thread_that_is_left_running_does_not_hold_the_task(deployed: Deployed) -> None:
    source = "import threading\nthreading.Thread(target=threading.Event().wait).start()\nprint('done')"
    run, output = deployed.ran(deployed.job(source))
    assert (result(run)[1], output.logs) == ("SUCCESS", "done\n")


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        ({"spark_python_task": SparkPythonTask(f"{HOME}/gone.py")}, f"Cannot read the python file {HOME}/gone.py"),
        ({"spark_python_task": SparkPythonTask(HOME)}, f"Cannot read the python file {HOME}: it is a directory"),
        ({"spark_python_task": SparkPythonTask("dbfs:/a.py")}, "Cannot read the python file dbfs:/a.py"),
        ({"spark_python_task": SparkPythonTask("a.py", source=Source.GIT)}, "no Git source"),
        ({"spark_python_task": None, "notebook_task": NotebookTask("/x")}, "has a notebook_task"),
        ({"job_cluster_key": "large"}, "the job defines no job cluster large"),
        ({"libraries": [Library(pypi=PythonPyPiLibrary("surely-not-installed>=2"))]}, "surely-not-installed>=2"),
        ({"libraries": [Library(maven=MavenLibrary("a:b:1"))]}, "{'maven': {'coordinates': 'a:b:1'}}"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_missing_is_named(deployed: Deployed, change: dict[str, object], missing: str) -> None:
    settings = {"spark_python_task": SparkPythonTask(deployed.upload("")), **change}
    job_id = deployed.jobs_of([Task(task_key="main", **settings)])  # type: ignore[arg-type]  # a task's own fields
    run, output = deployed.ran(job_id)
    life, value, message = result(run)
    assert (life, value) == ("INTERNAL_ERROR", "FAILED")
    assert message.startswith("Task main failed with message: ")
    assert missing in message
    assert missing in (output.error or "")
    assert run.tasks
    assert run.tasks[0].state
    assert run.tasks[0].state.life_cycle_state
    assert run.tasks[0].state.life_cycle_state.value == "INTERNAL_ERROR"


@pytest.mark.parametrize(
    ("value", "missing"),
    [
        ("{{secrets/scope/other}}", "TOKEN of spark_env_vars: Secret does not exist with scope: scope and key: other"),
        ("{{secrets/nowhere/key}}", "TOKEN of spark_env_vars: Scope nowhere does not exist"),
        ("{{secrets/scope}}", "TOKEN of spark_env_vars is no secret reference"),
        ("{{secrets/scope/broken}}", "The program could not be started: embedded null byte"),
    ],
)
def test_a_secret_that_is_missing(deployed: Deployed, empty: LocalWorkspace, value: str, missing: str) -> None:
    empty.secrets.put("scope", "key", "s3cret")
    empty.secrets.put("scope", "broken", "s3cret\0")
    variables = {"FINE": "{{secrets/scope/key}}", "TOKEN": value}
    run, output = deployed.ran(deployed.job("print('never')", variables=variables))
    assert missing in result(run)[2]
    assert "s3cret" not in f"{run.as_dict()} {output.as_dict()}"
    assert output.logs == ""


@pytest.mark.parametrize("reference", ["{{job.parameters.absent}}", "{{job.naem}}", "{{tasks.other.values.x}}"])
def test_a_reference_to_nothing(deployed: Deployed, reference: str) -> None:
    run, _ = deployed.ran(deployed.job("", ["fine", reference]))
    assert result(run)[:2] == ("INTERNAL_ERROR", "FAILED")
    assert f"The parameters of task main could not be resolved: {reference}" in result(run)[2]


def test_installed_libraries_are_taken_as_installed(deployed: Deployed) -> None:
    libraries = [Library(pypi=PythonPyPiLibrary(name)) for name in ("requests", "Databricks_SDK>=0.1", "rich [x]==1")]
    run, _ = deployed.ran(deployed.job("", task={"libraries": libraries}))
    assert result(run)[1] == "SUCCESS"


def test_a_cluster_of_the_tasks_own(deployed: Deployed) -> None:
    task = deployed.task("main", "import os\nprint(os.environ['A'])")
    settings = {"new_cluster": {"spark_env_vars": {"A": "mine"}}, **task.as_dict()}
    created = deployed.client.api_client.do("POST", "/api/2.2/jobs/create", body={"tasks": [settings]})
    assert isinstance(created, dict)
    assert deployed.ran(created["job_id"])[1].logs == "mine\n"


def test_scripted_jobs_stay_scripted(deployed: Deployed, empty: LocalWorkspace) -> None:
    """They cost no thread, even if their tasks look like those of a deployed job; a reset deploys them."""
    task = deployed.task("main", "print('executed')")
    empty.state.add_job("scripted", 7, "fail", seconds=0, tasks=[task.as_dict()])
    deployed.client.jobs.update(7, new_settings=JobSettings(max_concurrent_runs=1000))
    threads = threading.active_count()
    runs = [deployed.start(7) for _ in range(50)]
    assert threading.active_count() == threads
    assert {result(deployed.ended(run_id))[1] for run_id in runs} == {"FAILED"}
    assert deployed.output(runs[0]).error == "The sandbox's script made this task fail."
    deployed.client.jobs.reset(7, JobSettings(name="deployed", tasks=[deployed.task("main", "print(1)", ["x"])]))
    run, output = deployed.ran(7)
    assert (result(run)[1], output.logs) == ("SUCCESS", "1\n")


def test_a_job_of_the_api_that_names_no_work_is_scripted(deployed: Deployed) -> None:
    run, output = deployed.ran(deployed.jobs_of([Task(task_key="main")]))
    assert (result(run)[1], output.logs) == ("SUCCESS", "")


@pytest.mark.parametrize(
    "wrong",
    [
        {"timeout_seconds": "1"},
        {"tasks": [{"task_key": "a", "spark_python_task": 1}]},
        {"tasks": [{"task_key": "a", "libraries": [5]}]},
        {"tasks": [{"task_key": "a", "libraries": [{"pypi": "openpyxl"}]}]},
        {"job_clusters": {}},
        {"job_clusters": [5]},
        {"job_clusters": [{"job_cluster_key": "a", "new_cluster": 5}]},
    ],
)
def test_settings_of_the_wrong_shape_are_refused(deployed: Deployed, wrong: dict[str, object]) -> None:
    with pytest.raises(OSError, match=r"wrong type|array of objects"):
        deployed.client.api_client.do("POST", "/api/2.2/jobs/create", body=wrong)


def test_a_flaw_of_the_sandbox_ends_the_run(deployed: Deployed) -> None:
    body = {"tasks": [{"task_key": "main", "spark_python_task": {"python_file": deployed.upload(""), "parameters": 5}}]}
    created = deployed.client.api_client.do("POST", "/api/2.2/jobs/create", body=body)
    assert isinstance(created, dict)
    run, _ = deployed.ran(created["job_id"])
    assert result(run) == ("INTERNAL_ERROR", "FAILED", "The local workspace itself failed; see its log.")
