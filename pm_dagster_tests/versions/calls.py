"""Run with one version of the SDK: the calls about the cluster's job. ``calls.py ROOT JOB`` prints one JSON object."""

from __future__ import annotations

import json
import os
import sys
import time

sys.path.insert(0, sys.argv[1])

from pm_dagster.config.settings import settings_from
from pm_dagster.databricks.deployed_jobs import SdkDeployedJobs
from pm_dagster.databricks.sdk_check import sdk_version
from pm_dagster.databricks.sign_in import signed_in
from pm_dagster.errors import Refused


def _ended(jobs: SdkDeployedJobs, run_id: int) -> str | None:
    deadline = time.monotonic() + 20
    while (result := jobs.look_up(run_id).state.result_state) is None and time.monotonic() < deadline:
        time.sleep(0.1)
    return result


def _tell(job_id: int) -> dict[str, object]:
    settings = settings_from(os.environ)
    jobs = SdkDeployedJobs(signed_in(os.environ, settings), settings)
    (deployed,) = jobs.find_jobs("ingest")
    run_id = jobs.start(deployed.job_id, "a token")
    again = jobs.start(deployed.job_id, "a token")
    active = jobs.active_runs(job_id)
    seen = jobs.look_up(run_id)
    jobs.cancel(run_id)
    refused = False
    try:
        jobs.look_up(run_id + 1)
    except Refused as error:
        refused = error.gone
    return {
        "version": sdk_version(),
        "job": deployed.job_id,
        "same": run_id == again,
        "active": active == [run_id],
        "tasks": [task.task_key for task in seen.tasks],
        "standing": [seen.state.standing, _ended(jobs, run_id)],
        "gone": refused,
    }


if __name__ == "__main__":
    print(json.dumps(_tell(int(sys.argv[2]))))  # noqa: T201 the output
