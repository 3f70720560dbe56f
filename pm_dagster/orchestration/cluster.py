"""The dispatch on a cluster: an asset and a job that start the deployed Databricks job and wait for its run.

Put here: which of the core's answers is a success, a retry or a failure in Dagster. Keep out: decisions (``core``) and
how the outcome is shown (``cluster_metadata``).
"""

import os
from typing import Protocol

import dagster as dg

from pm_dagster.core.cluster_job import ClusterJobs, token_of
from pm_dagster.core.cluster_outcome import ClusterOutcome
from pm_dagster.core.cluster_run import ClusterDispatch, Order
from pm_dagster.core.errors import Unavailable
from pm_dagster.core.settings import Settings, settings_from
from pm_dagster.orchestration import names
from pm_dagster.orchestration.assets import mm_run_wait_vw
from pm_dagster.orchestration.cluster_metadata import cluster_metadata
from pm_dagster.orchestration.config import ClusterConfig
from pm_dagster.orchestration.retries import RETRY, translated


class ClusterWorkspace(Protocol):
    """A workspace that has not been connected to yet."""

    def cluster_jobs(self, settings: Settings) -> ClusterJobs:
        """The Jobs API of the workspace."""


_ASSET = dg.AssetSpec(
    names.ON_CLUSTER,
    group_name=names.GROUP,
    deps=[mm_run_wait_vw],
    kinds={"databricks", "spark"},
    description=(
        "The same dispatch on a Databricks cluster: starts the deployed job Process_Manager, waits for its run, and "
        "shows its page, the state of its tasks and the numbers of its report. One run here starts one run there, "
        "however often it is retried; cancelling it here cancels it there. A run that was skipped because another one "
        "was active is a failure that says so."
    ),
)


@dg.multi_asset(name=names.ON_CLUSTER_OP, specs=[_ASSET])
def process_manager_on_cluster(
    context: dg.AssetExecutionContext, config: ClusterConfig, databricks: dg.ResourceParam[ClusterWorkspace]
) -> dg.MaterializeResult[None]:
    """Start the job and wait; a retry finds the run of the try before."""
    try:
        with translated():
            outcome = _dispatched(context, config, databricks)
    except Unavailable as error:
        raise _retry(context) from error
    metadata = cluster_metadata(outcome)
    if not outcome.succeeded:
        raise dg.Failure(description=outcome.reason, metadata=metadata, allow_retries=False)
    return dg.MaterializeResult(metadata=metadata)


def _dispatched(
    context: dg.AssetExecutionContext, config: ClusterConfig, databricks: ClusterWorkspace
) -> ClusterOutcome:
    # Nothing of the database: whoever only starts the job needs no way into it.
    settings = settings_from(os.environ)
    order = Order(
        token=token_of(context.run.run_id),
        job_name=config.job_name,
        job_id=config.job_id,
        deadline_seconds=config.deadline_seconds,
        poll_seconds=config.poll_seconds,
        tries=settings.call_tries,
        backoff_seconds=settings.call_backoff_seconds,
    )
    return ClusterDispatch(databricks.cluster_jobs(settings), order, context.log).run()


def _retry(context: dg.AssetExecutionContext) -> dg.RetryRequested:
    """What RETRY would do as the op's policy.

    It is not set as such, because Dagster 1.13 retries an op that has a policy also when the run is cancelled
    (``dagster/_core/execution/plan/utils.py``), and would then report on the run that was cancelled before.
    """
    delay = RETRY.calculate_delay(context.retry_number + 1)
    return dg.RetryRequested(max_retries=RETRY.max_retries, seconds_to_wait=delay)


process_manager_on_cluster_job = dg.define_asset_job(
    names.ON_CLUSTER,
    selection=dg.AssetSelection.assets(names.ON_CLUSTER),
    tags=names.ON_CLUSTER_TAGS,
    executor_def=dg.in_process_executor,
    description=(
        "Starts the deployed Databricks job and waits for its run. It is safe to cancel, which cancels the Databricks "
        "run, and to start again."
    ),
)
