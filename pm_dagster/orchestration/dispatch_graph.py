"""The lineage of a dispatch, from the view to ``dispatched_jobs``. Each op runs one step of ``dispatch.service``.

An op reads from the ledger what its own process did not just claim. So a retry, a re-execution from failure and another
process continue, and repeat no call whose answer is known.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg
import pandas as pd

from pm_dagster.dispatch.worker import Sent
from pm_dagster.orchestration import names
from pm_dagster.orchestration.config import DispatchConfig
from pm_dagster.orchestration.frames import (
    claimed_from,
    entries_frame,
    entry_ids,
    rows_from,
    targets_frame,
    targets_from,
    waiting_frame,
)
from pm_dagster.orchestration.metadata import dispatch_metadata, report_frame, waiting_metadata
from pm_dagster.orchestration.resources import ControlTable, DispatchSession
from pm_dagster.orchestration.retries import RETRY, translated
from pm_dagster.orchestration.run_log import events_go_to


@contextmanager
def _step(context: dg.OpExecutionContext | dg.AssetExecutionContext) -> Iterator[None]:
    """Run a step of the dispatch: its errors in Dagster's terms, its events in the run's log."""
    with events_go_to(context.log, context.instance), translated():
        yield


mm_run_wait_vw = dg.AssetSpec(
    names.VIEW,
    group_name=names.GROUP,
    owners=names.OWNERS,
    kinds={"postgres", "view"},
    description=(
        "The view of the control plane that lists every job whose state is WAITING. It belongs to the control plane's "
        "owner; Process Manager only reads it."
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
        "The rows of the view that this dispatch may take, oldest first, as a DataFrame with exact integer ids. Rows "
        "that are backing off or quarantined are left out. Reading takes nothing: claiming is the next step."
    ),
)
def waiting_jobs(
    context: dg.AssetExecutionContext, config: DispatchConfig, control_table: dg.ResourceParam[ControlTable]
) -> pd.DataFrame:
    """Read the view; a retry reads again."""
    with _step(context):
        rows = control_table.control.waiting(config.limit or control_table.settings.dispatch_limit)
    frame = waiting_frame(rows)
    context.add_output_metadata(waiting_metadata(frame))
    return frame


@dg.op(
    out={
        "new": dg.Out(pd.DataFrame, description="The claimed entries that need a new run."),
        "repair": dg.Out(pd.DataFrame, description="The claimed entries whose previous run is to be repaired."),
    },
    retry_policy=RETRY,
    description=(
        "Claims the waiting jobs in the ledger and splits them: rows without a previous Databricks run need a new run, "
        "the others a repair. Rows that cannot be read are refused with the reason, and what a dead dispatcher left "
        "unresolved is taken over."
    ),
)
def partition_waiting_jobs(
    context: dg.OpExecutionContext, session: dg.ResourceParam[DispatchSession], waiting_jobs: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Claim, and split by branch."""
    with _step(context):
        claimed = session.dispatch.claim(rows_from(waiting_jobs))
    return entries_frame(claimed.new), entries_frame(claimed.repair)


@dg.op(
    retry_policy=RETRY,
    description=(
        "Starts a new run for each claimed entry, many at once and paced to the workspace's limits. The intent is "
        "committed before each call, and the call carries an idempotency token, so no row can get a second run."
    ),
)
def trigger_new_jobs(
    context: dg.OpExecutionContext, session: dg.ResourceParam[DispatchSession], new: pd.DataFrame
) -> Sent:
    """Start the new runs that are not answered yet."""
    with _step(context):
        sent = session.dispatch.send(session.dispatch.take_up(entry_ids(new)))
        session.dispatch.close_early()
    return sent


@dg.op(
    out={
        "targets": dg.Out(pd.DataFrame, description="The entries that need a repair, with the repair id to name."),
        "settled": dg.Out(Sent, description="The entries that need no call, for instance because their run is active."),
    },
    retry_policy=RETRY,
    description=(
        "Reads the run and the repair history of each claimed entry. A run that is already under way is adopted, and "
        "a failed one gets the latest repair id that its repair has to name."
    ),
)
def fetch_latest_repair_ids(
    context: dg.OpExecutionContext, session: dg.ResourceParam[DispatchSession], repair: pd.DataFrame
) -> tuple[pd.DataFrame, Sent]:
    """Look up the runs to repair."""
    with _step(context):
        targets, settled = session.dispatch.look_up_repairs(session.dispatch.take_up(entry_ids(repair)))
        session.dispatch.close_early()
    return targets_frame(targets), settled


@dg.op(
    retry_policy=RETRY,
    description=(
        "Repairs the failed tasks of each run, naming the latest repair id just read, so that a repair which somebody "
        "else started in between is refused by the workspace and then adopted."
    ),
)
def repair_job_runs(
    context: dg.OpExecutionContext, session: dg.ResourceParam[DispatchSession], targets: pd.DataFrame
) -> Sent:
    """Make the repairs that are not answered yet."""
    with _step(context):
        sent = session.dispatch.repair(targets_from(targets))
        session.dispatch.close_early()
    return sent


@dg.op(
    retry_policy=RETRY,
    description=(
        "Writes SCHEDULED, the run and the link to its page into the control table for every row whose run or repair "
        "exists, and FAILED with the reason for rows refused for good. A row that has meanwhile left WAITING is never "
        "set back."
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
    """Close the entries whose outcome is known, and report."""
    claimed, whole = claimed_from(waiting_jobs, new, repair), Sent.of(sent)
    with _step(context):
        closed = session.dispatch.close(claimed.entries, whole)
        report = session.dispatch.report(claimed, whole, closed)
    context.add_output_metadata(dispatch_metadata(report, waiting_jobs))
    return report_frame(report)


@dg.graph_asset(
    name=names.DISPATCHED_JOBS,
    group_name=names.GROUP,
    owners=names.OWNERS,
    kinds={"databricks", "postgres"},
    description=(
        "The waiting jobs after one dispatch: each row got a new run or a repair of its run in Databricks and is "
        "marked SCHEDULED in the control table, or it is left waiting or refused with the reason. Rows are never run "
        "twice; a bad row never stops the others."
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
