"""The dispatches that Dagster says are under way: whose they are, which of them are dead, and their end.

Put here: what Dagster knows of its runs. Keep out: the rule (``core.dead_runs``), and when a dispatch is to start.

Dagster 1.13 itself notices a dead worker only while the code server lives that started it, or by the run's time limit
(900 s here); until then its slot in the run queue is taken.
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
from pm_dagster.dispatch.ports import SignOfLife
from pm_dagster.errors import ProcessManagerError
from pm_dagster.orchestration import names
from pm_dagster.orchestration.dead_runs import RunFacts, Stage, Verdict, Worker, verdict
from pm_dagster.orchestration.environment import environment_of
from pm_dagster.orchestration.resources import ControlTable
from pm_dagster.orchestration.single_flight import single_flight

_log = logging.getLogger(__name__)
_STAGES: Final = {
    dg.DagsterRunStatus.QUEUED: Stage.QUEUED,
    dg.DagsterRunStatus.STARTING: Stage.STARTING,
    dg.DagsterRunStatus.STARTED: Stage.STARTED,
    dg.DagsterRunStatus.CANCELING: Stage.CANCELING,
}
_LABEL: Final = ".dagster/repository"
#: "Materialize" on assets, and a backfill of them, run this job and not ours; it has no tag of ours either.
_OF_ASSETS: Final = "__ASSET_JOB"
_OUR_ASSETS: Final = frozenset({dg.AssetKey(names.WAITING_JOBS), dg.AssetKey(names.DISPATCHED_JOBS)})
#: Where Dagster's own launcher notes the code server that started the worker.
_SERVER: Final = ".dagster/grpc_info"
_ASK_SECONDS: Final = 3
#: A dispatch stops sending long before; one that hangs must not hold up the others for ever.
_LONGEST_SECONDS: Final = names.MAX_RUNTIME_SECONDS + 300


@dataclass(frozen=True)
class Location:
    """Who asks: ``label`` is Dagster's own name for a repository of a code location, None where it is not told."""

    label: str | None = None


@dataclass(frozen=True)
class Dead:
    """A run that is to be ended, and why."""

    run: dg.DagsterRun
    why: str


@dataclass(frozen=True)
class UnderWay:
    """What is under way: how many dispatches of the asker's own may live, what is doubtful of them, and the dead."""

    living: int = 0
    doubts: tuple[str, ...] = ()
    dead: tuple[Dead, ...] = ()


def look(instance: dg.DagsterInstance, table: ControlTable, location: Location) -> UnderWay:
    """Find the dispatches that are under way. While the ledger cannot be asked, each of them lives."""
    records = [record for record in _records(instance, location) if _may_be_in_our_ledger(record.dagster_run, table)]
    if not records:
        return UnderWay()
    try:
        signs = table.control.signs_of_life([names.actor(record.dagster_run.run_id) for record in records])
    except ProcessManagerError as error:
        ours = [record.dagster_run.run_id for record in records if _is_ours(record.dagster_run, location)]
        doubt = f"whether it lives cannot be asked now: {scrubbed(str(error))}"
        return UnderWay(len(ours), tuple(f"run {run_id}: {doubt}" for run_id in ours))
    living, doubts, dead = 0, [], []
    for record in records:
        run = record.dagster_run
        sign = signs.get(names.actor(run.run_id))
        is_ours = _is_ours(run, location)
        # Of others only those that are known to have dispatched here: their slot in the queue is the one we need.
        if not is_ours and sign is None:
            continue
        found = _judge(instance, record, sign)
        if found.dead:
            dead.append(Dead(run, found.why))
        elif is_ours is not False and not _is_overdue(record):
            living += 1
            if found.doubtful:
                doubts.append(f"run {run.run_id}: {found.why}")
    return UnderWay(living, tuple(doubts), tuple(dead))


def end(instance: dg.DagsterInstance, dead: Iterable[Dead]) -> list[str]:
    """Report the dead runs to Dagster as what they are, which frees their slots; gives a line on each."""
    told = []
    for one in dead:
        now = instance.get_run_by_id(one.run.run_id)
        if now is None or now.is_finished:
            continue
        message = (
            f"Process Manager ended this run, because nothing of it lives: {one.why}. No row is lost: the next "
            "dispatch takes over what this one left, and asks the workspace before it sends anything again."
        )
        if now.status is dg.DagsterRunStatus.CANCELING:
            instance.report_run_canceled(now, message)
        else:
            instance.report_run_failed(now, message)
        told.append(f"run {now.run_id} is ended: {one.why}")
    return told


def _records(instance: dg.DagsterInstance, location: Location) -> list[dg.RunRecord]:
    """The dispatches under way: the asker's own, and those of others that may have the same control table."""
    statuses = list(_STAGES)
    found = list(instance.get_run_records(dg.RunsFilter(job_name=names.JOB, statuses=statuses)))
    of_assets = dg.RunsFilter(
        job_name=_OF_ASSETS, statuses=statuses, tags={_LABEL: location.label} if location.label else {}
    )
    return found + [record for record in instance.get_run_records(of_assets) if _is_of_our_assets(record.dagster_run)]


def _is_of_our_assets(run: dg.DagsterRun) -> bool:
    return run.asset_selection is None or not _OUR_ASSETS.isdisjoint(run.asset_selection)


def _is_ours(run: dg.DagsterRun, location: Location) -> bool | None:
    """By its code location where both are known; a run from the command line, and a schedule, know none.

    None when only the ledger can tell.
    """
    if location.label is not None and run.remote_job_origin is not None:
        return run.remote_job_origin.repository_origin.get_label() == location.label
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
        _log.warning("whether run %s has a worker cannot be asked of its code server: %s", run.run_id, why)
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
