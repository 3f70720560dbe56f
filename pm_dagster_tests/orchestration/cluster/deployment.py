"""A local workspace with the deployed job, a Dagster instance, and what Dagster says of a run. No expectations here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import dagster as dg

from pm_dagster.definitions import build_definitions
from pm_dagster.orchestration import names
from pm_dagster.sandbox.workspace import LocalWorkspace
from pm_dagster.sandbox.workspace.model import Job, Run
from pm_dagster_tests.sandbox.deployed import Deployed

JOB = 2**53 + 5
NAME = "Process_Manager"


@dataclass
class Deployment:
    """A workspace, a Dagster instance, and the job that is started from it."""

    workspace: LocalWorkspace
    instance: dg.DagsterInstance

    def add_job(self, name: str = NAME, job_id: int | None = JOB, **script: Any) -> Job:  # noqa: ANN401
        """A deployed job as the bundle defines it: one run at a time, no queue."""
        script = {"seconds": 0.05, "max_concurrent_runs": 1, "queue": False, **script}
        return self.workspace.state.add_job(name, job_id=job_id, **script)

    def execute(self, **config: Any) -> dg.ExecuteInProcessResult:  # noqa: ANN401
        """Run the Dagster job."""
        job = build_definitions().resolve_job_def("process_manager_on_cluster")
        run_config = {"ops": {names.ON_CLUSTER_OP: {"config": {"poll_seconds": 0.02, **config}}}}
        return job.execute_in_process(instance=self.instance, run_config=run_config, raise_on_error=False)

    def runs(self) -> list[Run]:
        """The Databricks runs, the latest first."""
        return self.workspace.state.runs()

    def logged(self, result: dg.ExecuteInProcessResult) -> str:
        """Everything that Dagster keeps of the run."""
        return "\n".join(f"{entry!r} {entry.user_message}" for entry in self.instance.all_logs(result.run_id))

    def deploy(self, source: str) -> None:
        """A job that is called "deployed" and executes this program."""
        Deployed(self.workspace.host, self.workspace.token).job(source)


def shown(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    """The metadata of the materialization."""
    assert result.success, [event.step_failure_data.error_display_string for event in result.get_step_failure_events()]
    (event,) = result.get_asset_materialization_events()
    assert event.asset_key == dg.AssetKey("process_manager_on_cluster")
    return {key: value.value for key, value in event.materialization.metadata.items()}


def failure(result: dg.ExecuteInProcessResult) -> tuple[str, dict[str, Any]]:
    """Description and metadata of a failure that Dagster does not repeat."""
    assert not result.success
    assert result.get_asset_materialization_events() == []
    assert not [event for event in result.all_events if event.event_type is dg.DagsterEventType.STEP_UP_FOR_RETRY]
    (event,) = result.get_step_failure_events()
    data = event.step_failure_data.user_failure_data
    assert data is not None
    return data.description or "", {key: value.value for key, value in data.metadata.items()}
