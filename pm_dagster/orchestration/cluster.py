"""The dispatch on a cluster: a job that starts the deployed Databricks job and waits for its run, and its asset.

The asset is external, so that "Materialize all" never starts a cluster; the job reports what materialized it.

Put here: which of the core's answers is a success, a retry or a failure in Dagster. Keep out: decisions (``core``) and
how the outcome is shown (``cluster_metadata``).
"""

from collections.abc import Mapping
from typing import Protocol

import dagster as dg

from pm_dagster.config.settings import Settings, settings_from
from pm_dagster.launcher.deployed_job import DeployedJobs, token_of
from pm_dagster.launcher.launch import Launch, Order
from pm_dagster.launcher.run_outcome import LaunchOutcome
from pm_dagster.orchestration import names
from pm_dagster.orchestration.cluster_metadata import cluster_metadata
from pm_dagster.orchestration.config import ClusterConfig
from pm_dagster.orchestration.dispatch_graph import mm_run_wait_vw
from pm_dagster.orchestration.retries import RETRY, translated


class ClusterWorkspace(Protocol):
    """A workspace that has not been connected to yet."""

    def environment(self) -> Mapping[str, str]:
        """The variables from which settings are read."""

    def deployed_jobs(self, settings: Settings) -> DeployedJobs:
        """The Jobs API of the workspace."""


process_manager_on_cluster = dg.AssetSpec(
    names.ON_CLUSTER,
    group_name=names.GROUP,
    owners=names.OWNERS,
    deps=[mm_run_wait_vw],
    kinds={"databricks", "spark"},
    description=(
        "The same dispatch on a Databricks cluster, once for each run of the job process_manager_on_cluster: the page "
        "of the Databricks run, the state of its tasks and the numbers of its report."
    ),
)


@dg.op(
    name=names.ON_CLUSTER_OP,
    out=dg.Out(dg.Nothing),
    retry_policy=RETRY,
    description=(
        "Starts the deployed Databricks job, waits for its run and shows how it ended. A retry finds the run of the "
        "try before; cancelling the run here cancels it there. A run that was skipped because another one was active "
        "is a failure that says so."
    ),
)
def run_deployed_job(
    context: dg.OpExecutionContext, config: ClusterConfig, databricks: dg.ResourceParam[ClusterWorkspace]
) -> None:
    """Start the job and wait."""
    with translated():
        outcome = _dispatched(context, config, databricks)
    metadata = cluster_metadata(outcome)
    if not outcome.succeeded:
        raise dg.Failure(description=outcome.reason, metadata=metadata, allow_retries=False)
    context.log_event(dg.AssetMaterialization(names.ON_CLUSTER, metadata=metadata))


def _dispatched(context: dg.OpExecutionContext, config: ClusterConfig, databricks: ClusterWorkspace) -> LaunchOutcome:
    # Nothing of the database: whoever only starts the job needs no way into it.
    settings = settings_from(databricks.environment())
    order = Order(
        token=token_of(context.run.run_id),
        job_name=config.job_name,
        job_id=config.job_id,
        deadline_seconds=config.deadline_seconds,
        poll_seconds=config.poll_seconds,
        tries=settings.call_tries,
        backoff_seconds=settings.call_backoff_seconds,
    )
    return Launch(databricks.deployed_jobs(settings), order, context.log).run()


@dg.job(
    name=names.ON_CLUSTER,
    tags=names.ON_CLUSTER_TAGS,
    executor_def=dg.in_process_executor,
    description=(
        "Starts the deployed Databricks job Process_Manager and waits for its run: one run here is one run there, "
        "however often it is retried. It is safe to cancel, which cancels the Databricks run, and to start again."
    ),
)
def process_manager_on_cluster_job() -> None:
    """One op."""
    run_deployed_job()
