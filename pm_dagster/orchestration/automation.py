"""What starts a dispatch: the sensor within seconds, the schedule as backstop, and when both decline.

Put here: when to start. Keep out: which rows; a run finds them itself, so replaying a tick can do no harm.
"""

from datetime import UTC, datetime, timedelta

import dagster as dg

from pm_dagster.core.errors import ConfigurationError
from pm_dagster.core.ports import Backlog
from pm_dagster.orchestration import names
from pm_dagster.orchestration.resources import ControlTable
from pm_dagster.orchestration.retries import translated

process_manager = dg.define_asset_job(
    names.JOB,
    selection=dg.AssetSelection.assets(names.WAITING_JOBS, names.DISPATCHED_JOBS),
    tags=names.JOB_TAGS,
    # A step costs 65 to 140 ms in process and 4 to 7 s in a process of its own (measured on 2 cores).
    executor_def=dg.in_process_executor,
    description=(
        "One dispatch: reads the waiting jobs and starts or repairs a Databricks run for each of them. It is safe to "
        "start at any time, to cancel, and to execute again from failure."
    ),
)

_UNDER_WAY = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
#: An older run is dead without having said so; it must not hold up dispatching for ever.
_OLDEST_ALIVE = timedelta(seconds=names.MAX_RUNTIME_SECONDS + 300)


def is_under_way(instance: dg.DagsterInstance) -> bool:
    """True while a dispatch is queued or runs."""
    since = datetime.now(UTC) - _OLDEST_ALIVE
    runs = dg.RunsFilter(job_name=names.JOB, statuses=_UNDER_WAY, created_after=since)
    return instance.get_runs_count(runs) > 0


def idle_reason(backlog: Backlog) -> str:
    """Why there is nothing to dispatch, with the counts that tell whether that is right."""
    oldest = "none" if backlog.oldest_seconds is None else f"{backlog.oldest_seconds:.0f} s"
    return (
        f"{backlog.ready} jobs wait to be dispatched (oldest: {oldest}); {backlog.backing_off} are backing off, "
        f"{backlog.in_hand} in hand, {backlog.quarantined} quarantined"
    )


def _tick(instance: dg.DagsterInstance, control_table: ControlTable) -> dg.RunRequest | dg.SkipReason:
    if is_under_way(instance):
        return dg.SkipReason("a dispatch is already under way")
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
    job=process_manager,
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
    return _tick(context.instance, control_table)


@dg.schedule(
    name=names.SCHEDULE,
    job=process_manager,
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
    return _tick(context.instance, control_table)
