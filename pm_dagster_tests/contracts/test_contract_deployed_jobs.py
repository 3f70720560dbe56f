"""What every DeployedJobs promises: the fake, and the adapter over the SDK against the local workspace."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from databricks.sdk.core import Config

from pm_dagster.config.settings import Settings
from pm_dagster.databricks.deployed_jobs import SdkDeployedJobs
from pm_dagster.errors import Refused
from pm_dagster.launcher.deployed_job import DeployedJobs, End, TaskOutput, end_of
from pm_dagster.sandbox.workspace.server import LocalWorkspace
from pm_dagster_tests.fakes import deployed_jobs as fake

JOB, QUEUEING_JOB = 2**53 + 11, 2**53 + 13
NAME = "Process_Manager"


class FakeBench:
    """The fake with two jobs whose runs last: one has no queue."""

    def __init__(self) -> None:
        self.fake = fake.InMemoryDeployedJobs(fake.Job(JOB), fake.Job(QUEUEING_JOB, "queueing", queue=True))
        self.jobs: DeployedJobs = self.fake

    def add_job(self, name: str) -> int:
        """Another job."""
        job = fake.Job(7000 + len(self.fake.jobs), name)
        self.fake.jobs.append(job)
        return job.job_id

    def finish(self, run_id: int, outcome: str) -> None:
        """End a run."""
        states = {
            "succeed": fake.SUCCESS,
            "fail": fake.FAILED,
            "timeout": ("TERMINATED", "TIMEDOUT"),
            "internal_error": ("INTERNAL_ERROR", None),
            "succeed_with_failures": ("TERMINATED", "SUCCESS_WITH_FAILURES"),
            "cancel": fake.CANCELED,
        }
        self.fake.runs[run_id].job.output = TaskOutput(error="why" if outcome == "fail" else "")
        self.fake.finish(run_id, states[outcome])


class LocalBench:
    """The same over the SDK and the local workspace."""

    def __init__(self, workspace: LocalWorkspace) -> None:
        self.workspace = workspace
        workspace.switches.cancel_seconds = 0.0
        workspace.state.add_job(NAME, job_id=JOB, seconds=None, max_concurrent_runs=1, queue=False)
        workspace.state.add_job("queueing", job_id=QUEUEING_JOB, seconds=None, max_concurrent_runs=1, queue=True)
        config = Config(host=workspace.host, token=workspace.token)
        self.jobs: DeployedJobs = SdkDeployedJobs(config, Settings())

    def add_job(self, name: str) -> int:
        """Another job."""
        return self.workspace.state.add_job(name).job_id

    def finish(self, run_id: int, outcome: str) -> None:
        """End a run."""
        self.workspace.state.finish(run_id, outcome)


Bench = FakeBench | LocalBench


@pytest.fixture(params=["fake", "sdk"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """Each implementation in turn."""
    if request.param == "fake":
        yield FakeBench()
        return
    with LocalWorkspace() as workspace:
        yield LocalBench(workspace)


def test_a_job_is_found_with_its_id_and_creator(bench: Bench) -> None:
    (job,) = bench.jobs.find_jobs(NAME)
    assert (job.job_id, job.name) == (JOB, NAME)
    assert job.creator


def test_a_job_that_only_contains_the_name_is_not_found(bench: Bench) -> None:
    bench.add_job(f"[dev somebody] {NAME}")
    assert [job.job_id for job in bench.jobs.find_jobs(NAME)] == [JOB]
    assert bench.jobs.find_jobs("something else") == []


def test_jobs_are_found_over_all_pages_whatever_their_case(bench: Bench) -> None:
    added = {bench.add_job(NAME.lower() if number % 2 else NAME) for number in range(210)}
    found = bench.jobs.find_jobs(NAME)
    assert {job.job_id for job in found} == {JOB, *added}
    assert sum(job.name == NAME for job in found) == 106


def test_a_token_starts_one_run_however_often_it_is_sent(bench: Bench) -> None:
    first = bench.jobs.start(JOB, "token-1")
    assert bench.jobs.start(JOB, "token-1") == first
    assert bench.jobs.start(JOB, "token-2") != first
    assert first > 2**53


def test_a_started_run_is_active_with_its_tasks(bench: Bench) -> None:
    run_id = bench.jobs.start(JOB, "token")
    run = bench.jobs.look_up(run_id)
    assert (run.state.run_id, run.state.job_id, end_of(run.state), run.end_ms) == (run_id, JOB, None, 0)
    (task,) = run.latest_tasks
    assert task.task_key == "main"
    assert task.state.run_id > 2**53
    assert task.state.run_id != run_id
    assert (run.seconds, task.seconds) == (None, None)
    assert bench.jobs.active_runs(JOB) == [run_id]


@pytest.mark.parametrize(
    ("outcome", "end"),
    [
        ("succeed", End.SUCCEEDED),
        ("fail", End.FAILED),
        ("timeout", End.TIMED_OUT),
        ("internal_error", End.INTERNAL_ERROR),
        ("succeed_with_failures", End.SUCCEEDED_WITH_FAILURES),
        ("cancel", End.CANCELED),
    ],
)
def test_a_run_that_ended_says_how(bench: Bench, outcome: str, end: End) -> None:
    run_id = bench.jobs.start(JOB, "token")
    bench.finish(run_id, outcome)
    run = bench.jobs.look_up(run_id)
    assert end_of(run.state) is end
    assert run.seconds is not None
    assert bench.jobs.active_runs(JOB) == []


def test_a_run_beside_another_is_skipped_when_the_job_does_not_queue(bench: Bench) -> None:
    first, second = (bench.jobs.start(JOB, f"token-{number}") for number in (1, 2))
    run = bench.jobs.look_up(second)
    assert end_of(run.state) is End.SKIPPED
    assert run.tasks[0].start_ms == 0
    assert bench.jobs.active_runs(JOB) == [first]


def test_a_run_beside_another_waits_when_the_job_queues(bench: Bench) -> None:
    first, second = (bench.jobs.start(QUEUEING_JOB, f"token-{number}") for number in (1, 2))
    assert bench.jobs.look_up(second).state.words == "QUEUED"
    assert bench.jobs.active_runs(QUEUEING_JOB) == [second, first]


def test_a_failed_task_says_why(bench: Bench) -> None:
    run_id = bench.jobs.start(JOB, "token")
    (task,) = bench.jobs.look_up(run_id).tasks
    bench.finish(run_id, "fail")
    output = bench.jobs.output(task.state.run_id)
    assert output.error
    assert not output.truncated


def test_a_cancelled_run_ends_and_stays_so(bench: Bench) -> None:
    run_id = bench.jobs.start(JOB, "token")
    bench.jobs.cancel(run_id)
    bench.jobs.cancel(run_id)
    states = [end_of(bench.jobs.look_up(run_id).state) for _ in range(3)]
    bench.jobs.cancel(run_id)
    assert states[-1] is End.CANCELED
    assert end_of(bench.jobs.look_up(run_id).state) is End.CANCELED


def test_a_run_that_is_over_cannot_be_cancelled_any_more(bench: Bench) -> None:
    run_id = bench.jobs.start(JOB, "token")
    bench.finish(run_id, "succeed")
    bench.jobs.cancel(run_id)
    assert end_of(bench.jobs.look_up(run_id).state) is End.SUCCEEDED


def test_a_job_that_does_not_exist_is_refused(bench: Bench) -> None:
    with pytest.raises(Refused) as caught:
        bench.jobs.start(999, "token")
    assert 400 <= caught.value.status < 500


def test_a_run_that_does_not_exist_is_gone(bench: Bench) -> None:
    for call in (bench.jobs.look_up, bench.jobs.output, bench.jobs.cancel):
        with pytest.raises(Refused) as caught:
            call(424242)
        assert 400 <= caught.value.status < 500
    with pytest.raises(Refused) as gone:
        bench.jobs.look_up(424242)
    assert gone.value.gone


def test_the_page_of_a_run_names_both_ids(bench: Bench) -> None:
    link = bench.jobs.page_url(JOB, 2**53 + 1)
    assert str(JOB) in link
    assert str(2**53 + 1) in link


def test_other_text_passes_the_scrubbing_unchanged(bench: Bench) -> None:
    assert bench.jobs.scrub("Run 7 does not exist.") == "Run 7 does not exist."
