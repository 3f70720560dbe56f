"""What starts a dispatch: the sensor within seconds, the schedule as backstop. Both skip while a dispatch is under way.

A tick decides when to start, never which rows: a run finds them itself, so replaying a tick can do no harm.

A tick also ends the dispatches that are dead (the rule is in ``dead_runs``). Dagster 1.13 itself notices a dead worker
only while the code server lives that started it, or by the run's time limit (900 s here); until then the dead run keeps
its slot in the run queue.
"""

import json
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import dagster as dg

from pm_dagster.config.masking import scrubbed
from pm_dagster.dispatch.ports import Backlog, SignOfLife
from pm_dagster.errors import ConfigurationError, ProcessManagerError
from pm_dagster.logs import fields
from pm_dagster.orchestration import names
from pm_dagster.orchestration.dead_runs import RunFacts, Stage, Verdict, Worker, verdict
from pm_dagster.orchestration.execution import translated
from pm_dagster.orchestration.jobs import single_flight
from pm_dagster.orchestration.resources import ControlTable, environment_of

_log = logging.getLogger(__name__)
_STAGES: Final = {
    dg.DagsterRunStatus.QUEUED: Stage.QUEUED,
    dg.DagsterRunStatus.STARTING: Stage.STARTING,
    dg.DagsterRunStatus.STARTED: Stage.STARTED,
    dg.DagsterRunStatus.CANCELING: Stage.CANCELING,
}
#: The tag by which Dagster says which repository of which code location a run belongs to.
_REPOSITORY: Final = ".dagster/repository"
#: "Materialize" on assets, and a backfill of them, run this job and not ours; it has no tag of ours either.
_OF_ASSETS: Final = "__ASSET_JOB"
_OUR_ASSETS: Final = frozenset({dg.AssetKey(names.WAITING_JOBS), dg.AssetKey(names.DISPATCHED_JOBS)})
#: Where Dagster's own launcher notes the code server that started the worker.
_SERVER: Final = ".dagster/grpc_info"
_ASK_SECONDS: Final = 3
#: The daemon looks every 5 s at which sensors are due. With an interval of 5 s, a tick that began milliseconds late
#: would make the sensor not due at the next look, and the next tick would come after 10 s.
_INTERVAL_SECONDS: Final = 4
#: How long a tick watches the rows, less than the daemon's 5 s, and the least time between two looks.
_WATCH_SECONDS: Final = 4.0
_PAUSE_SECONDS: Final = 0.5
#: A look at a slow view is not repeated before so many times what it took.
_PAUSE_OF_LOOK: Final = 20
#: A dispatch stops sending long before; one that hangs must not hold up the others for ever.
_LONGEST_SECONDS: Final = names.MAX_RUNTIME_SECONDS + 300


@dg.sensor(
    name=names.SENSOR,
    job_name=names.JOB,
    minimum_interval_seconds=_INTERVAL_SECONDS,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description=(
        "Starts a dispatch within seconds when jobs wait and no dispatch is under way. A look is one query and makes "
        "no call to Databricks. Where sensors have threads of their own (`use_threads` in dagster.yaml), a tick asks "
        "twice a second. A tick also ends dispatches whose processes died. One that cannot read the control table "
        "fails; it does not skip."
    ),
)
def waiting_jobs_sensor(
    context: dg.SensorEvaluationContext, control_table: dg.ResourceParam[ControlTable]
) -> dg.RunRequest | dg.SkipReason:
    """Ask for a run when jobs wait."""
    origin = context.code_location_origin
    repository = f"{context.repository_name}@{origin.location_name}" if origin and context.repository_name else None
    return _tick(context.instance, control_table, repository, context.log, watch=_watch_seconds(context.instance))


@dg.schedule(
    name=names.SCHEDULE,
    job_name=names.JOB,
    cron_schedule="*/5 * * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.STOPPED,
    description=(
        "Starts a dispatch every five minutes when jobs wait and no dispatch is under way. It is the backstop of the "
        "sensor: what the sensor misses is dispatched at most five minutes later."
    ),
)
def process_manager_schedule(
    context: dg.ScheduleEvaluationContext, control_table: dg.ResourceParam[ControlTable]
) -> dg.RunRequest | dg.SkipReason:
    """Ask for a run when jobs still wait."""
    # Dagster 1.13 does not tell a schedule its code location.
    return _tick(context.instance, control_table, None, context.log)


def _watch_seconds(instance: dg.DagsterInstance) -> float:
    """How long a tick may watch the rows: without threads, the sensors of the instance wait for each other."""
    return _WATCH_SECONDS if (instance.get_settings("sensors") or {}).get("use_threads") else 0.0


def _tick(
    instance: dg.DagsterInstance,
    table: ControlTable,
    repository: str | None = None,
    log: logging.Logger = _log,
    watch: float = 0.0,
) -> dg.RunRequest | dg.SkipReason:
    """End what is dead, then ask for a run, or say why not.

    Args:
        instance: Where Dagster keeps its runs.
        table: The control table of the code location that asks.
        repository: Dagster's own name for its repository and code location; None where it is not known.
        log: Gets a line on each run that is ended.
        watch: For how many seconds to look for rows again while there are none.
    """
    end = time.monotonic() + watch
    found = under_way(instance, table, repository)
    for line in end_dead_runs(instance, found.dead):
        log.warning(line)
    if found.living:
        return _under_way_already(found)
    backlog, pause = _look(table)
    is_first = True
    while backlog.ready == 0 and time.monotonic() + pause <= end:
        time.sleep(pause)
        backlog, pause = _look(table)
        is_first = False
    if backlog.ready == 0:
        return dg.SkipReason(idle_reason(backlog))
    if not is_first and (found := under_way(instance, table, repository)).living:
        # Somebody else started it meanwhile.
        return _under_way_already(found)
    # No run key: a key that ever launched a run, even a failed one, is skipped for ever.
    return dg.RunRequest(tags={"process_manager/waiting": str(backlog.ready)})


def _look(table: ControlTable) -> tuple[Backlog, float]:
    """What waits, and after how many seconds to look again."""
    began = time.monotonic()
    with translated():
        backlog = table.control.backlog()
        if backlog.question:
            # A run could only fail by it, every few seconds.
            raise ConfigurationError(backlog.question)
    return backlog, max(_PAUSE_SECONDS, _PAUSE_OF_LOOK * (time.monotonic() - began))


def _under_way_already(found: "UnderWay") -> dg.SkipReason:
    return dg.SkipReason("; ".join(["A dispatch is already under way", *found.doubts]) + ".")


def idle_reason(backlog: Backlog) -> str:
    """Why there is nothing to dispatch, with the counts that show whether that is right."""
    counts = [
        f"backing off: {backlog.backing_off}",
        f"being dispatched: {backlog.in_hand}",
        f"refused: {backlog.quarantined}",
    ]
    if backlog.locked:
        counts.append(f"locked by another session: {backlog.locked}")
    if backlog.untakeable:
        counts.append(f"not usable by any dispatch: {backlog.untakeable}, see `pm status`")
    return f"No waiting job is ready to dispatch ({', '.join(counts)})."


@dataclass(frozen=True)
class DeadRun:
    """A run that is to be ended, and why."""

    run: dg.DagsterRun
    why: str


@dataclass(frozen=True)
class UnderWay:
    """The dispatches that Dagster says are under way.

    Attributes:
        living: How many of the asking code location may live.
        doubts: What is doubtful of them, a text for each.
        dead: Those that are to be ended.
    """

    living: int = 0
    doubts: tuple[str, ...] = ()
    dead: tuple[DeadRun, ...] = ()


def under_way(instance: dg.DagsterInstance, table: ControlTable, repository: str | None) -> UnderWay:
    """Find the dispatches that are under way. While the ledger cannot be read, each of them counts as living."""
    records = [record for record in _records(instance, repository) if _may_be_in_our_ledger(record.dagster_run, table)]
    if not records:
        return UnderWay()
    try:
        signs = table.control.signs_of_life([names.actor(record.dagster_run.run_id) for record in records])
    except ProcessManagerError as error:
        ours = [record.dagster_run.run_id for record in records if _is_ours(record.dagster_run, repository)]
        doubt = f"the ledger cannot be read to see whether it lives: {scrubbed(str(error))}"
        return UnderWay(len(ours), tuple(f"run {run_id}: {doubt}" for run_id in ours))
    living, doubts, dead = 0, [], []
    for record in records:
        run = record.dagster_run
        sign = signs.get(names.actor(run.run_id))
        is_ours = _is_ours(run, repository)
        # Of others only those that are known to have dispatched here: their slot in the queue is the one we need.
        if not is_ours and sign is None:
            continue
        found = _judge(instance, record, sign)
        if found.dead:
            dead.append(DeadRun(run, found.why))
        elif is_ours is not False and not _is_overdue(record):
            living += 1
            if found.doubtful:
                doubts.append(f"run {run.run_id}: {found.why}")
    return UnderWay(living, tuple(doubts), tuple(dead))


def end_dead_runs(instance: dg.DagsterInstance, dead: Iterable[DeadRun]) -> list[str]:
    """Report the dead runs to Dagster as failed or cancelled, which frees their slots; gives a line on each."""
    lines = []
    for one in dead:
        now = instance.get_run_by_id(one.run.run_id)
        if now is None or now.is_finished:
            continue
        message = (
            f"Process Manager ended this run because its processes are dead: {one.why}. No row is lost: the next "
            "dispatch rescues the rows that this run left unfinished, and looks them up in Databricks before it sends "
            "anything again."
        )
        if now.status is dg.DagsterRunStatus.CANCELING:
            instance.report_run_canceled(now, message)
        else:
            instance.report_run_failed(now, message)
        lines.append(f"Ended run {now.run_id}: {one.why}.")
    return lines


def _records(instance: dg.DagsterInstance, repository: str | None) -> list[dg.RunRecord]:
    """The dispatches under way: the asker's own, and those of others that may have the same control table."""
    statuses = list(_STAGES)
    found = list(instance.get_run_records(dg.RunsFilter(job_name=names.JOB, statuses=statuses)))
    of_assets = dg.RunsFilter(
        job_name=_OF_ASSETS, statuses=statuses, tags={_REPOSITORY: repository} if repository else {}
    )
    return found + [record for record in instance.get_run_records(of_assets) if _is_of_our_assets(record.dagster_run)]


def _is_of_our_assets(run: dg.DagsterRun) -> bool:
    return run.asset_selection is None or not _OUR_ASSETS.isdisjoint(run.asset_selection)


def _is_ours(run: dg.DagsterRun, repository: str | None) -> bool | None:
    """By its code location where both are known; a run from the command line, and a schedule, know none.

    None when only the ledger can tell.
    """
    if repository is not None and run.remote_job_origin is not None:
        return run.remote_job_origin.repository_origin.get_label() == repository
    return None if run.job_name == _OF_ASSETS else True


def _may_be_in_our_ledger(run: dg.DagsterRun, table: ControlTable) -> bool:
    """A run for another control table is not judged by our ledger, which may be a copy of its own."""
    ((name, ours),) = single_flight(environment_of(table.variable_prefix)).items()
    return run.tags.get(name, ours) == ours


def _judge(instance: dg.DagsterInstance, record: dg.RunRecord, sign: SignOfLife | None) -> Verdict:
    run = record.dagster_run
    stage = _STAGES[run.status]
    if sign is not None and sign.alive:
        return verdict(RunFacts(stage, 0.0), sign)
    quiet, waits_for_retry = _last_event(instance, record)
    facts = RunFacts(
        stage,
        quiet,
        worker=_worker(instance, run),
        queue_is_served=_queue_is_served(instance) if stage is Stage.QUEUED else True,
        steps_apart=waits_for_retry or _steps_are_apart(instance, run),
    )
    return verdict(facts, sign)


def _is_overdue(record: dg.RunRecord) -> bool:
    return record.start_time is not None and time.time() - record.start_time > _LONGEST_SECONDS


def _last_event(instance: dg.DagsterInstance, record: dg.RunRecord) -> tuple[float, bool]:
    """Seconds since the run's last event, and whether that announces a retry."""
    records = instance.get_records_for_run(record.dagster_run.run_id, limit=1, ascending=False).records
    if not records:
        return max(0.0, (datetime.now(UTC) - record.create_timestamp.replace(tzinfo=UTC)).total_seconds()), False
    entry = records[0].event_log_entry
    retry = entry.is_dagster_event and entry.dagster_event_type is dg.DagsterEventType.STEP_UP_FOR_RETRY
    return max(0.0, time.time() - entry.timestamp), retry


def _steps_are_apart(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Only executors that start a process for each step say so."""
    kind = dg.DagsterEventType.STEP_WORKER_STARTING
    return bool(instance.get_records_for_run(run.run_id, of_type=kind, limit=1).records)


def _queue_is_served(instance: dg.DagsterInstance) -> bool:
    try:
        return isinstance(instance.run_coordinator, dg.QueuedRunCoordinator)
    except Exception:  # noqa: BLE001 somebody's own coordinator, which the code server need not have
        return True


def _worker(instance: dg.DagsterInstance, run: dg.DagsterRun) -> Worker:
    """What the code server says that started the run; with other launchers than Dagster's own nobody can be asked."""
    if run.status in (dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.CANCELING):
        # It has none yet, or one of which the server says the same as of none.
        return Worker.UNKNOWN
    if run.status is dg.DagsterRunStatus.STARTING and _SERVER not in run.tags:
        # Dagster's own launcher notes the server first: it died before it asked for a worker.
        return Worker.GONE if _is_launched_by_dagster(instance) else Worker.UNKNOWN
    if _SERVER not in run.tags:
        return Worker.UNKNOWN
    try:
        return Worker.THERE if _knows_its_worker(run) else Worker.GONE
    except Exception as error:  # noqa: BLE001 whatever it is, the ledger still decides
        if _is_refused(error):
            return Worker.GONE
        why = scrubbed(f"{type(error).__name__}: {error}")
        _log.warning("code server cannot be asked for a worker", extra=fields(dagster_run_id=run.run_id, error=why))
        return Worker.UNKNOWN


def _knows_its_worker(run: dg.DagsterRun) -> bool:
    """Whether the code server that started the run's worker has it; any error when that cannot be asked."""
    # Dagster promises nothing about these two: a code location loads without them.
    from dagster._grpc.client import DagsterGrpcClient  # noqa: PLC0415
    from dagster._grpc.types import CanCancelExecutionRequest, CanCancelExecutionResult  # noqa: PLC0415

    known = json.loads(run.tags[_SERVER])
    server = DagsterGrpcClient(
        port=known.get("port"),
        socket=known.get("socket"),
        host=known.get("host"),
        use_ssl=bool(known.get("use_ssl", False)),
    )
    answer = server.can_cancel_execution(CanCancelExecutionRequest(run_id=run.run_id), timeout=_ASK_SECONDS)
    return dg.deserialize_value(answer, CanCancelExecutionResult).can_cancel


def _is_launched_by_dagster(instance: dg.DagsterInstance) -> bool:
    try:
        return isinstance(instance.run_launcher, dg.DefaultRunLauncher)
    except Exception:  # noqa: BLE001 somebody's own launcher, which the code server need not have
        return False


def _is_refused(error: BaseException) -> bool:
    """Whether nobody listens there; a server that is slow to answer may still have the worker."""
    cause = error.__cause__ or error.__context__
    code = getattr(cause, "code", lambda: None)()
    return getattr(code, "name", "") == "UNAVAILABLE"
