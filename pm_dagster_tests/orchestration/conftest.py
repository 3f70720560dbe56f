"""A dispatch over fakes, on a real Dagster instance."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.reconstruct import ReconstructableJob

from pm_dagster.config.settings import Settings
from pm_dagster.definitions import build_definitions
from pm_dagster.orchestration import names
from pm_dagster.orchestration.resources import ControlTable
from pm_dagster.sandbox.workspace import LocalWorkspace
from pm_dagster_tests.fakes.control_plane import InMemoryControlPlane
from pm_dagster_tests.fakes.database import InMemoryDatabase
from pm_dagster_tests.fakes.runs import InMemoryRuns, InMemoryWorkspace
from pm_dagster_tests.orchestration.deployment import DEPLOYED, JOB, Deployment

_QUICK = Settings(call_tries=2, call_backoff_seconds=0.01, settle_seconds=0.01)


@dataclass
class CodeLocation:
    """A code location over a control table and a workspace in memory, on a real Dagster instance."""

    instance: dg.DagsterInstance
    database: InMemoryDatabase = field(default_factory=InMemoryDatabase)
    runs: InMemoryRuns = field(default_factory=InMemoryRuns)
    settings: Settings = _QUICK
    faults: dict[str, list[Any]] = field(default_factory=dict)

    def definitions(self, **overrides: Any) -> dg.Definitions:  # noqa: ANN401
        """The code location over the fakes."""
        return build_definitions(
            **{"control_table": self.table(), "databricks": InMemoryWorkspace(self.runs), **overrides}
        )

    def table(self) -> ControlTable:
        """The control table as a new dispatcher sees it."""
        control = InMemoryControlPlane(self.database, self.settings)
        control.faults = self.faults
        settings = self.settings
        return ControlTable(lambda: (control, settings))

    def dispatch(self, **options: Any) -> dg.ExecuteInProcessResult:  # noqa: ANN401
        """Run the job ``process_manager``."""
        job = self.definitions().resolve_job_def(names.JOB)
        return job.execute_in_process(instance=self.instance, raise_on_error=False, **options)

    def retried(self, result: dg.ExecuteInProcessResult) -> list[str]:
        """The steps that were retried, in order."""
        return [str(e.step_key) for e in result.all_events if e.event_type is dg.DagsterEventType.STEP_UP_FOR_RETRY]

    def metadata(self, result: dg.ExecuteInProcessResult, asset: str = names.DISPATCHED_JOBS) -> dict[str, Any]:
        """The metadata of an asset's materialization, as plain values."""
        (event,) = [e for e in result.get_asset_materialization_events() if e.asset_key == dg.AssetKey(asset)]
        return {name: value.value for name, value in event.materialization.metadata.items()}

    def with_settings(self, **values: Any) -> None:  # noqa: ANN401
        """Change settings for the dispatches that follow."""
        self.settings = replace(self.settings, **values)


#: Dagster makes the job anew for each run, by calling a function without arguments.
_stored: list[CodeLocation] = []


def process_manager_job() -> dg.JobDefinition:
    """The job over the fakes of ``stored``."""
    return _stored[-1].definitions().resolve_job_def(names.JOB)


@pytest.fixture
def stored() -> Iterator[CodeLocation]:
    """A code location whose runs can be re-executed."""
    with dg.DagsterInstance.local_temp() as instance:
        _stored.append(CodeLocation(instance))
        # Dagster keeps the job of the test before.
        ReconstructableJob.get_definition.cache_clear()
        ReconstructableJob.get_repository_definition.cache_clear()
        yield _stored[-1]
        _stored.clear()


@pytest.fixture(autouse=True)
def _an_instance_of_its_own() -> Iterator[None]:
    """Dagster 1.13 leaves the storage of an instance that was entered twice behind for whoever comes next."""
    with dg.DagsterInstance.ephemeral():
        yield


@pytest.fixture
def code_location() -> Iterator[CodeLocation]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield CodeLocation(instance)


@pytest.fixture
def deployment(ledger_url: str, tmp_path: Path) -> Iterator[Deployment]:
    shutil.copy(DEPLOYED, tmp_path)
    with LocalWorkspace() as workspace:
        workspace.state.add_job("ingest", job_id=JOB, seconds=30.0, max_concurrent_runs=1000)
        yield Deployment(ledger_url, workspace, tmp_path)
