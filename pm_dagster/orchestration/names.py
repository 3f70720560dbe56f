"""The names under which operators find things in the UI and in the ledger, and the tags of a dispatch. Nothing else."""

from typing import Final

VIEW: Final = "mm_run_wait_vw"
WAITING_JOBS: Final = "waiting_jobs"
DISPATCHED_JOBS: Final = "dispatched_jobs"
JOB: Final = "process_manager"
#: The asset and the job that start the deployed Databricks job; an op may not be called like a job.
ON_CLUSTER: Final = "process_manager_on_cluster"
ON_CLUSTER_OP: Final = "run_deployed_job"
SENSOR: Final = "waiting_jobs_sensor"
SCHEDULE: Final = "process_manager_schedule"
CHECK: Final = "no_quarantined_rows"
GROUP: Final = "process_manager"
#: Whom the UI names for our assets.
OWNERS: Final = ["team:process-manager"]

#: Dagster ends a run that outlives this; a dispatch stops sending well before (``PM_DEADLINE_SECONDS``).
MAX_RUNTIME_SECONDS: Final = 900
#: The run queue of deploy/dagster-*/dagster.yaml limits runs to one at a time for each value of this tag, which stands
#: for the control table (``single_flight``).
SINGLE_FLIGHT: Final = "process_manager/dispatch"
#: Longer than a run on a cluster is waited for (``ClusterConfig.deadline_seconds``) and cancelled. SINGLE_FLIGHT is not
#: among them: no dispatch should have to wait for a cluster, and the ledger keeps the two apart.
ON_CLUSTER_TAGS: Final = {"dagster/max_runtime": "1500"}
JOB_TAGS: Final = {"dagster/max_runtime": str(MAX_RUNTIME_SECONDS)}


def actor(run_id: str) -> str:
    """The name under which the ledger knows the dispatchers of a run."""
    return f"Dagster run {run_id}"
