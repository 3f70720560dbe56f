"""What every DatabricksRuns promises: the fake, and the adapter over the SDK against the local workspace."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from databricks.sdk.core import Config

from pm_dagster.config.settings import Settings
from pm_dagster.databricks.runs import SdkRuns
from pm_dagster.dispatch.model import Standing, read_whole
from pm_dagster.dispatch.ports import DatabricksRuns
from pm_dagster.errors import Refused
from pm_dagster.sandbox.workspace.server import LocalWorkspace
from pm_dagster_tests.fakes.runs import InMemoryRuns

JOB = 1001


class FakeBench:
    """The fake with a job."""

    def __init__(self) -> None:
        self.fake = InMemoryRuns(jobs=(JOB,))
        self.runs: DatabricksRuns = self.fake

    def failed_run(self, repairs: int = 0) -> int:
        """A run that failed, after so many repairs."""
        return self.fake.failed_run(JOB, repairs)


class LocalBench:
    """The SDK against the local workspace with a job whose runs last."""

    def __init__(self, workspace: LocalWorkspace) -> None:
        self.workspace = workspace
        workspace.state.add_job("job", job_id=JOB, seconds=None, max_concurrent_runs=10)
        config = Config(host=workspace.host, token=workspace.token)
        self.runs: DatabricksRuns = SdkRuns(config, Settings())

    def failed_run(self, repairs: int = 0) -> int:
        """A run that failed, after so many repairs."""
        return self.workspace.state.add_run(JOB, outcome="fail", repairs=repairs).run_id


Bench = FakeBench | LocalBench


@pytest.fixture(params=["fake", "sdk"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """Each implementation in turn."""
    if request.param == "fake":
        yield FakeBench()
        return
    with LocalWorkspace() as workspace:
        yield LocalBench(workspace)


def test_a_token_starts_one_run_however_often_it_is_sent(bench: Bench) -> None:
    first = bench.runs.start(JOB, {"A": "1"}, "token-1")
    assert bench.runs.start(JOB, {"A": "1"}, "token-1") == first
    assert bench.runs.start(JOB, {"A": "1"}, "token-2") != first
    assert first > 2**53


def test_a_started_run_is_active(bench: Bench) -> None:
    run_id = bench.runs.start(JOB, {}, "token")
    run = read_whole(bench.runs.look_up(run_id))
    assert (run.run_id, run.job_id, run.standing, run.repair_ids) == (run_id, JOB, Standing.ACTIVE, ())


def test_a_job_that_does_not_exist_is_refused(bench: Bench) -> None:
    with pytest.raises(Refused) as caught:
        bench.runs.start(999, {}, "token")
    assert 400 <= caught.value.status < 500
    assert caught.value.job_absent


def test_a_run_that_does_not_exist_is_gone(bench: Bench) -> None:
    with pytest.raises(Refused) as caught:
        read_whole(bench.runs.look_up(424242))
    assert caught.value.gone


@pytest.mark.parametrize("repairs", [0, 1, 3])
def test_a_failed_run_is_repaired_by_naming_its_latest_repair(bench: Bench, repairs: int) -> None:
    run_id = bench.failed_run(repairs)
    before = read_whole(bench.runs.look_up(run_id))
    assert (before.standing, len(before.repair_ids)) == (Standing.REPAIRABLE, repairs)
    repair_id = bench.runs.repair(run_id, {"A": "1"}, before.latest_repair_id)
    after = read_whole(bench.runs.look_up(run_id))
    assert (after.standing, after.repair_ids) == (Standing.ACTIVE, (*before.repair_ids, repair_id))


def test_a_second_repair_with_the_same_id_is_refused(bench: Bench) -> None:
    run_id = bench.failed_run(1)
    latest = read_whole(bench.runs.look_up(run_id)).latest_repair_id
    bench.runs.repair(run_id, {}, latest)
    with pytest.raises(Refused):
        bench.runs.repair(run_id, {}, latest)
    assert len(read_whole(bench.runs.look_up(run_id)).repair_ids) == 2


def test_a_repair_without_the_latest_id_is_refused(bench: Bench) -> None:
    run_id = bench.failed_run(2)
    with pytest.raises(Refused):
        bench.runs.repair(run_id, {}, None)
    assert read_whole(bench.runs.look_up(run_id)).standing is Standing.REPAIRABLE


def test_a_long_history_is_read_whole_and_in_order(bench: Bench) -> None:
    run = read_whole(bench.runs.look_up(bench.failed_run(45)))
    assert len(run.repair_ids) == 45
    assert run.latest_repair_id == run.repair_ids[-1]


def test_a_started_run_is_found_by_its_parameters(bench: Bench) -> None:
    since = datetime.now(UTC) - timedelta(minutes=5)
    bench.runs.start(JOB, {"RUN_ID": "1"}, "token-1")
    wanted = bench.runs.start(JOB, {"RUN_ID": "2"}, "token-2")
    assert read_whole(bench.runs.find_started(JOB, since, {"RUN_ID": "2"})) == [wanted]
    assert read_whole(bench.runs.find_started(JOB, since, {"RUN_ID": "3"})) == []


def test_the_page_of_a_run_names_both_ids(bench: Bench) -> None:
    link = bench.runs.page_url(JOB, 2**53 + 1)
    assert str(JOB) in link
    assert str(2**53 + 1) in link


def test_other_text_passes_the_scrubbing_unchanged(bench: Bench) -> None:
    assert bench.runs.scrub("Run 7 does not exist.") == "Run 7 does not exist."
