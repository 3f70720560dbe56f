"""The job that the bundle describes, deployed and started from Dagster: rows, numbers, and the cause of a failure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pytest

from pm_dagster.sandbox.place import Place
from pm_dagster_tests.bundle.deployment import INGEST_JOB
from pm_dagster_tests.bundle.deployment import Deployment as Sandbox
from pm_dagster_tests.bundle.sdk_deployment import Deployed
from pm_dagster_tests.orchestration.cluster.deployment import Deployment, failure, shown


@dataclass
class Whole:
    """A sandbox with the bundle's job, seen by its owner and by Dagster."""

    sandbox: Sandbox
    dagster: Deployment


@pytest.fixture
def whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Whole]:
    with Place(tmp_path).opened() as opened, dg.DagsterInstance.ephemeral() as instance:
        opened.workspace.state.add_job("ingest", job_id=INGEST_JOB, seconds=60.0, max_concurrent_runs=1000)
        for name, value in {"HOST": opened.workspace.host, "TOKEN": opened.workspace.token}.items():
            monkeypatch.setenv(f"DATABRICKS_{name}", value)
        sandbox = Sandbox(opened, tmp_path, tmp_path)
        Deployed(sandbox)
        yield Whole(sandbox, Deployment(opened.workspace, instance))


def test_it_empties_the_view_and_its_numbers_arrive(whole: Whole) -> None:
    whole.sandbox.add_waiting_jobs(new=3, repairs=2)
    result = whole.dagster.execute()
    metadata = shown(result)
    assert whole.sandbox.statuses() == {"SCHEDULED": 5}
    assert (metadata["new/accepted"], metadata["repair/accepted"], metadata["scheduled"]) == (3, 2, 5)
    assert "| process_manager | TERMINATED | SUCCESS |" in metadata["tasks"]
    assert not [secret for secret in whole.sandbox.secrets() if secret in whole.dagster.logged(result)]


def test_a_dispatch_that_could_not_run_says_why(whole: Whole) -> None:
    whole.sandbox.add_waiting_jobs(new=1, repairs=0)
    url = "jdbc:postgresql://127.0.0.1:1/postgres"
    whole.sandbox.sandbox.workspace.secrets.put("tp_dpf2cdl", "refDBjdbcURL", url)
    result = whole.dagster.execute()
    description, metadata = failure(result)
    assert "In task process_manager: " in description
    assert "the database does not answer" in description
    assert "the database does not answer" in metadata["last lines of process_manager"]
    assert whole.sandbox.statuses() == {"WAITING": 1}
    assert not [secret for secret in whole.sandbox.secrets() if secret in whole.dagster.logged(result)]
