"""The bundle's job, deployed and run by the official SDK instead of the CLI. No expectations here."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from pathlib import PurePosixPath
from typing import Any

from databricks.sdk import WorkspaceClient
from databricks.sdk.errors import OperationFailed
from databricks.sdk.service.jobs import Run, RunOutput
from databricks.sdk.service.workspace import ImportFormat

from pm_dagster.sandbox.workspace.model import USER_NAME
from pm_dagster_tests.bundle.bundle_files import ROOT, job_settings, synced_files
from pm_dagster_tests.bundle.deployment import Deployment


class Deployed:
    """The bundle's job as a deployment leaves it in the workspace."""

    def __init__(self, deployment: Deployment) -> None:
        workspace = deployment.sandbox.workspace
        self.client = WorkspaceClient(host=workspace.host, token=workspace.token, auth_type="pat")
        self.settings = job_settings("sandbox", {}, USER_NAME)
        self._upload()
        self.job_id = self._create()

    def _upload(self) -> None:
        entry: str = self.settings["tasks"][0]["spark_python_task"]["python_file"]
        files = PurePosixPath(entry.removesuffix("/pm_dagster/cluster/process_manager.py"))
        for path in synced_files():
            to = files / path.as_posix()
            self.client.workspace.mkdirs(str(to.parent))
            content = (ROOT / path).read_bytes()
            self.client.workspace.upload(str(to), content, format=ImportFormat.AUTO, overwrite=True)

    def _create(self) -> int:
        answer: Any = self.client.api_client.do("POST", "/api/2.2/jobs/create", body=self.settings)
        return int(answer["job_id"])

    def run(self) -> tuple[Run, RunOutput]:
        """Run the job to its end; gives the run and the output of its task."""
        started = self.client.jobs.run_now(self.job_id)
        # A failed run of tasks ends as INTERNAL_ERROR, which the SDK takes for a failure to wait.
        with suppress(OperationFailed):
            self.client.jobs.wait_get_run_job_terminated_or_skipped(started.run_id, timeout=timedelta(minutes=2))
        run = self.client.jobs.get_run(started.run_id)
        (task,) = run.tasks or []
        return run, self.client.jobs.get_run_output(task.run_id or 0)
