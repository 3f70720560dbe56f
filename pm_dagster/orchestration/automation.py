"""What starts a dispatch: the sensor within seconds, the schedule as backstop, and when both decline.

Put here: when to start. Keep out: which rows; a run finds them itself, so replaying a tick can do no harm.
"""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

import dagster as dg

from pm_dagster.dispatch.ports import Backlog
from pm_dagster.errors import ConfigurationError
from pm_dagster.orchestration import names, under_way
from pm_dagster.orchestration.resources import ControlTable
from pm_dagster.orchestration.retries import translated
from pm_dagster.orchestration.single_flight import single_flight
from pm_dagster.orchestration.under_way import Location

if TYPE_CHECKING:
    # Not among the names that Dagster makes public.
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

_log = logging.getLogger(__name__)
_UNKNOWN = Location()


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
            "to start at any time, to cancel, and to execute again from failure."
        ),
    )


def idle_reason(backlog: Backlog) -> str:
    """Why there is nothing to dispatch, with the counts that tell whether that is right."""
    oldest = "none" if backlog.oldest_seconds is None else f"{backlog.oldest_seconds:.0f} s"
    return (
        f"{backlog.ready} jobs wait to be dispatched (oldest: {oldest}); {backlog.backing_off} are backing off, "
        f"{backlog.in_hand} are being dispatched, {backlog.quarantined} were refused"
        + (f"; {backlog.locked} are locked by another session" if backlog.locked else "")
        + (f"; {backlog.untakeable} can be taken by no dispatch (`pm status` says why)" if backlog.untakeable else "")
    )


def _tick(
    instance: dg.DagsterInstance,
    control_table: ControlTable,
    location: Location = _UNKNOWN,
    log: logging.Logger = _log,
) -> dg.RunRequest | dg.SkipReason:
    found = under_way.look(instance, control_table, location)
    for line in under_way.end(instance, found.dead):
        log.warning(line)
    if found.living:
        return dg.SkipReason("; ".join(["a dispatch is already under way", *found.doubts]))
    with translated():
        backlog = control_table.control.backlog()
        if backlog.question:
            # A run could only fail by it, every few seconds.
            raise ConfigurationError(backlog.question)
    if backlog.ready == 0:
        return dg.SkipReason(idle_reason(backlog))
    # No run key: a key that ever launched a run, even a failed one, is skipped for ever.
    return dg.RunRequest(tags={"process_manager/waiting": str(backlog.ready)})


@dg.sensor(
    name=names.SENSOR,
    job_name=names.JOB,
    minimum_interval_seconds=5,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description=(
        "Starts a dispatch within seconds when jobs wait and none is under way. A tick costs one query and no call to "
        "Databricks. A tick that cannot read the control table fails; it never passes for an empty one."
    ),
)
def waiting_jobs_sensor(
    context: dg.SensorEvaluationContext, control_table: dg.ResourceParam[ControlTable]
) -> dg.RunRequest | dg.SkipReason:
    """Ask for a run when jobs wait."""
    origin = context.code_location_origin
    label = f"{context.repository_name}@{origin.location_name}" if origin and context.repository_name else None
    return _tick(context.instance, control_table, Location(label), context.log)


@dg.schedule(
    name=names.SCHEDULE,
    job_name=names.JOB,
    cron_schedule="*/5 * * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.STOPPED,
    description=(
        "Starts a dispatch every five minutes when jobs wait and none is under way: what the sensor missed is late by "
        "minutes and never lost."
    ),
)
def process_manager_schedule(
    context: dg.ScheduleEvaluationContext, control_table: dg.ResourceParam[ControlTable]
) -> dg.RunRequest | dg.SkipReason:
    """Ask for a run when jobs still wait."""
    # Dagster 1.13 does not tell a schedule its code location.
    return _tick(context.instance, control_table, _UNKNOWN, context.log)
