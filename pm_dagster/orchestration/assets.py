"""The assets, from the view to ``dispatched_jobs``, with the graph of a dispatch, its ops and its asset check.

Each op runs one step of ``dispatch.service``, those that send through ``dispatch.sender``: the first of them to run
begins with the rows of both branches, and each awaits its own. An op reads from the ledger what its own process did not
just claim. So a retry, a re-execution from failure and another process continue, and repeat no call whose answer is
known.
"""

import dagster as dg
import pandas as pd
from pydantic import Field

from pm_dagster.dispatch.model import Outcome
from pm_dagster.dispatch.worker import Sent
from pm_dagster.orchestration import names
from pm_dagster.orchestration.execution import RETRY, ops_of, step
from pm_dagster.orchestration.frames import (
    claimed_from,
    entries_frame,
    entry_ids,
    report_frame,
    rows_from,
    targets_frame,
    targets_from,
    waiting_frame,
)
from pm_dagster.orchestration.metadata import (
    calls_metadata,
    dispatch_metadata,
    quarantined_metadata,
    waiting_metadata,
)
from pm_dagster.orchestration.resources import ControlTable, DispatchSession


class DispatchConfig(dg.Config):
    """How much one dispatch takes."""

    limit: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description=(
            "The most rows that this dispatch takes, oldest first. The other rows stay WAITING for the next one. "
            "Empty: PM_DISPATCH_LIMIT (1000 by default)."
        ),
    )


mm_run_wait_vw = dg.AssetSpec(
    names.VIEW,
    group_name=names.GROUP,
    owners=names.OWNERS,
    kinds={"postgres", "view"},
    description=(
        "The view in Postgres that lists every row of the control table whose status is WAITING. It belongs to the "
        "owner of the control table. Process Manager only reads it."
    ),
)


@dg.asset(
    name=names.WAITING_JOBS,
    group_name=names.GROUP,
    owners=names.OWNERS,
    deps=[mm_run_wait_vw],
    kinds={"pandas"},
    retry_policy=RETRY,
    description=(
        "The rows of the view that this dispatch may take, oldest first, as a DataFrame. Rows that are backing off or "
        "refused are left out. Reading changes nothing: the next step claims the rows."
    ),
)
def waiting_jobs(
    context: dg.AssetExecutionContext, config: DispatchConfig, control_table: dg.ResourceParam[ControlTable]
) -> pd.DataFrame:
    """Read the view; a retry reads again. The columns are those of ``frames.waiting_frame``."""
    with step(context):
        rows = control_table.control.waiting(config.limit or control_table.settings.dispatch_limit)
    frame = waiting_frame(rows)
    context.add_output_metadata(waiting_metadata(frame))
    return frame


@dg.op(
    out={
        "new": dg.Out(pd.DataFrame, description="The claimed rows that need a new run."),
        "repair": dg.Out(pd.DataFrame, description="The claimed rows whose previous run needs a repair."),
    },
    retry_policy=RETRY,
    description=(
        "Claims the waiting jobs in the ledger and splits them: a row without a previous Databricks run needs a new "
        "run, every other row a repair. A row that cannot be read is refused with the reason. Rows that a dead "
        "dispatcher left unfinished are rescued: they join this dispatch."
    ),
)
def partition_waiting_jobs(
    context: dg.OpExecutionContext, session: dg.ResourceParam[DispatchSession], waiting_jobs: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Claim, and split by branch."""
    with step(context, session.events):
        claimed = session.dispatch.claim(rows_from(waiting_jobs))
    return entries_frame(claimed.new), entries_frame(claimed.repair)


@dg.op(
    retry_policy=RETRY,
    description=(
        "Starts a new run for each claimed row, many at once and within the rate limits of the workspace. The ledger "
        "records each call before it is sent, and the call carries an idempotency token, so no row gets a second run. "
        "Where one process runs all ops, the rows that need a repair are looked up and repaired at the same time."
    ),
)
def trigger_new_jobs(
    context: dg.OpExecutionContext, session: dg.ResourceParam[DispatchSession], new: pd.DataFrame
) -> Sent:
    """Start the new runs that are not answered yet."""
    with step(context, session.events):
        part = session.sender(ops_of(context)).start(entry_ids(new))
    context.add_output_metadata(calls_metadata(part))
    return part.sent


@dg.op(
    out={
        "targets": dg.Out(pd.DataFrame, description="The rows that need a repair, with the repair id to name."),
        "settled": dg.Out(Sent, description="The rows that need no call, for example because their run is active."),
    },
    retry_policy=RETRY,
    description=(
        "Reads the run and the repair history of each claimed row. A run that is already active is adopted: the row "
        "is scheduled without a call. For a failed run it reads the latest repair id, which the repair has to name. "
        "Both branches are sent at once: often this was done before this op began. Its metadata say when."
    ),
)
def fetch_latest_repair_ids(
    context: dg.OpExecutionContext, session: dg.ResourceParam[DispatchSession], repair: pd.DataFrame
) -> tuple[pd.DataFrame, Sent]:
    """Look up the runs to repair."""
    with step(context, session.events):
        part = session.sender(ops_of(context)).look_up(entry_ids(repair))
    context.add_output_metadata(calls_metadata(part), "targets")
    return targets_frame(part.targets), part.sent


@dg.op(
    retry_policy=RETRY,
    description=(
        "Repairs the failed tasks of each run and names the latest repair id that the previous op read. When somebody "
        "else repaired the run in between, the workspace refuses the call and the other repair is adopted. "
        "Both branches are sent at once: often the repairs were made before this op began. Its metadata say when."
    ),
)
def repair_job_runs(
    context: dg.OpExecutionContext, session: dg.ResourceParam[DispatchSession], targets: pd.DataFrame
) -> Sent:
    """Make the repairs that are not answered yet."""
    with step(context, session.events):
        part = session.sender(ops_of(context)).repair(targets_from(targets))
    context.add_output_metadata(calls_metadata(part))
    return part.sent


@dg.op(
    retry_policy=RETRY,
    description=(
        "Writes the results into the control table: SCHEDULED, the run and the link to its page for every row whose "
        "run or repair exists, FAILED with the reason for every row that is refused for good. A row that has left "
        "WAITING meanwhile is never set back. With `linger_seconds` it then looks for further rows and dispatches "
        "them, both branches at once."
    ),
)
def mark_scheduled(
    context: dg.OpExecutionContext,
    session: dg.ResourceParam[DispatchSession],
    waiting_jobs: pd.DataFrame,
    new: pd.DataFrame,
    repair: pd.DataFrame,
    sent: list[Sent],
) -> pd.DataFrame:
    """Close the entries whose outcome is known, linger, report. The columns are those of ``frames.report_frame``."""
    claimed, whole = claimed_from(waiting_jobs, new, repair), Sent.of(sent)
    with step(context, session.events):
        dispatch = session.rest()
        closed = dispatch.close(claimed.entries, whole)
        report = dispatch.report(claimed, whole, closed)
        further = dispatch.linger(len(claimed.entries)) if session.sends_all(ops_of(context)) else None
    report = report.and_then(further) if further else report
    context.add_output_metadata(dispatch_metadata(report, waiting_jobs, further))
    return report_frame(report)


@dg.graph_asset(
    name=names.DISPATCHED_JOBS,
    group_name=names.GROUP,
    owners=names.OWNERS,
    kinds={"databricks", "postgres"},
    description=(
        "The waiting jobs after one dispatch. Each row got a new run or a repair in Databricks and is SCHEDULED in the "
        "control table, or it stays WAITING or is refused, with the reason. No row runs twice, and a bad row never "
        "stops the others."
    ),
)
def dispatched_jobs(waiting_jobs: pd.DataFrame) -> pd.DataFrame:
    """Both branches side by side, then one closing."""
    new, repair = partition_waiting_jobs(waiting_jobs)
    started = trigger_new_jobs(new)
    targets, settled = fetch_latest_repair_ids(repair)
    repaired = repair_job_runs(targets)
    marked: pd.DataFrame = mark_scheduled(waiting_jobs, new, repair, [started, settled, repaired])
    return marked


@dg.asset_check(
    asset=names.DISPATCHED_JOBS,
    name=names.CHECK,
    description=(
        "Warns when a dispatch refuses rows for good (quarantines them). Each shows its reason and stays refused until "
        "somebody corrects it and runs `pm redrive`."
    ),
)
def no_quarantined_rows(dispatched_jobs: pd.DataFrame) -> dg.AssetCheckResult:
    """Warns when a dispatch refuses rows for good, and shows each with its reason."""
    quarantined = dispatched_jobs[dispatched_jobs["outcome"] == Outcome.QUARANTINED.value]
    return dg.AssetCheckResult(
        passed=quarantined.empty,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"Rows refused by this dispatch: {len(quarantined)}.",
        metadata=quarantined_metadata(quarantined),
    )


#: External, so that "Materialize all" never starts a cluster; the job ``process_manager_on_cluster`` reports each run.
process_manager_on_cluster = dg.AssetSpec(
    names.ON_CLUSTER,
    group_name=names.GROUP,
    owners=names.OWNERS,
    deps=[mm_run_wait_vw],
    kinds={"databricks", "spark"},
    description=(
        "The same dispatch, done on a Databricks cluster. Each run of the job process_manager_on_cluster materializes "
        "it once and shows the page of the Databricks run, the state of its tasks and the numbers of its report."
    ),
)
