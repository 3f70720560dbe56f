"""The jobs: ``process_manager`` is a dispatch, ``process_manager_on_cluster`` starts the deployed Databricks job.

The first has a tag by which the run queue keeps dispatches of one control table apart, and lets those of several
run side by side. It is made when the code location loads, when a credential may not be there yet and must not be
needed: a reference to a secret stands for itself. No password goes into it, so it stays when that is rotated.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import dagster as dg
from pydantic import Field

from pm_dagster.config.credentials.references import NotReadableError, reference_in
from pm_dagster.config.settings import LIBPQ_VARIABLES, Settings, settings_from
from pm_dagster.errors import ConfigurationError
from pm_dagster.launcher.deployed_job import DeployedJobs, token_of
from pm_dagster.launcher.launch import Launch, Order
from pm_dagster.ledger.connection_strings import url_parameters
from pm_dagster.orchestration import names
from pm_dagster.orchestration.execution import RETRY, step
from pm_dagster.orchestration.metadata import cluster_metadata

if TYPE_CHECKING:
    # Not among the names that Dagster makes public.
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

_PLACES = ("host", "hostaddr", "port", "dbname", "service")
_PARTS = ("PM_POSTGRES_HOST", "PM_POSTGRES_PORT", "PM_POSTGRES_DATABASE", "PGSERVICE", "PM_SECRETS", "PM_SCHEMA")
_READABLE_LENGTH = 40


def process_manager(environment: Mapping[str, str]) -> "UnresolvedAssetJobDefinition":
    """The job of a dispatch, with the tag of the control table that these variables lead to."""
    return dg.define_asset_job(
        names.JOB,
        selection=dg.AssetSelection.assets(names.WAITING_JOBS, names.DISPATCHED_JOBS),
        tags={**names.JOB_TAGS, **single_flight(environment)},
        # A step costs 65 to 140 ms in process and 4 to 7 s in a process of its own (measured on 2 cores).
        executor_def=dg.in_process_executor,
        description=(
            "One dispatch: reads the waiting jobs and starts or repairs a Databricks run for each of them. It is safe "
            "to start at any time, to cancel, and to re-execute from failure."
        ),
    )


def single_flight(given: Mapping[str, str]) -> dict[str, str]:
    """The tag of every dispatch of the control table that these variables lead to."""
    parts = {name: given.get(name, "") for name in _PARTS}
    parts |= {name: given.get(name, "") for name, part in LIBPQ_VARIABLES.items() if part in _PLACES}
    parts |= _places(given.get("PM_POSTGRES_URL", ""))
    table = given.get("PM_RUN_TABLE", "") or "mm_run_plc"
    known = json.dumps([table, sorted(item for item in parts.items() if item[1])])
    digest = hashlib.sha256(known.encode("utf-8", "surrogateescape")).hexdigest()[:12]
    # What a tag's value may hold everywhere: https://docs.dagster.io/guides/build/assets/metadata-and-tags/tags
    readable = re.sub(r"[^A-Za-z0-9_.-]", "_", table)[:_READABLE_LENGTH]
    return {names.SINGLE_FLIGHT: f"{readable}.{digest}"}


def _places(url: str) -> dict[str, str]:
    """Where a URL leads, without the user; a reference to a URL as it is."""
    try:
        if reference := reference_in(url):
            return {"url": str(reference)}
        found = url_parameters(url)
    except (ConfigurationError, NotReadableError):
        # Whoever uses it gets the error; any part of it may be a password.
        return {}
    return {part: found[part] for part in _PLACES if part in found}


class ClusterConfig(dg.Config):
    """Which deployed Databricks job is started, and how long its run is waited for."""

    job_name: str = Field(
        default="Process_Manager",
        min_length=1,
        description=(
            "The exact name of the deployed Databricks job. A job that was deployed for development has a prefix, such "
            "as '[dev somebody] Process_Manager'."
        ),
    )
    job_id: int | None = Field(
        default=None,
        ge=1,
        description="The id of the deployed Databricks job, instead of its name. For when several jobs share it.",
    )
    deadline_seconds: float = Field(
        default=1200.0,
        gt=0,
        le=86_400,
        description=(
            "After this many seconds the Databricks run is cancelled and this run fails. It should be more than the "
            "timeout of the Databricks job (900 s) and less than this run's tag dagster/max_runtime (1500 s)."
        ),
    )
    poll_seconds: float = Field(
        default=5.0, gt=0, le=300, description="Seconds between two look-ups of the Databricks run."
    )


class ClusterWorkspace(Protocol):
    """A workspace that has not been connected to yet."""

    def environment(self) -> Mapping[str, str]:
        """The variables from which settings are read."""

    def deployed_jobs(self, settings: Settings) -> DeployedJobs:
        """The Jobs API of the workspace."""


@dg.op(
    name=names.ON_CLUSTER_OP,
    out=dg.Out(dg.Nothing),
    retry_policy=RETRY,
    description=(
        "Starts the deployed Databricks job, waits for its run and shows how it ended. A retry continues with the "
        "Databricks run that the first try started. Cancelling this run cancels the Databricks run. When the workspace "
        "skips the run because another one is active, this op fails and names the active run."
    ),
)
def run_deployed_job(
    context: dg.OpExecutionContext, config: ClusterConfig, databricks: dg.ResourceParam[ClusterWorkspace]
) -> None:
    """Start the job, wait, and report the end as a materialization or a failure that is not retried."""
    with step(context):
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
        outcome = Launch(databricks.deployed_jobs(settings), order, context.log).run()
    metadata = cluster_metadata(outcome)
    if not outcome.succeeded:
        raise dg.Failure(description=outcome.reason, metadata=metadata, allow_retries=False)
    context.log_event(dg.AssetMaterialization(names.ON_CLUSTER, metadata=metadata))


@dg.job(
    name=names.ON_CLUSTER,
    tags=names.ON_CLUSTER_TAGS,
    executor_def=dg.in_process_executor,
    description=(
        "Starts the deployed Databricks job Process_Manager and waits for its run. One run here starts one run there, "
        "however often it is retried. It is safe to cancel, which cancels the Databricks run, and to start again."
    ),
)
def process_manager_on_cluster_job() -> None:
    """One op."""
    run_deployed_job()
