"""The ops of a dispatch: each hands its entries to the core and passes on what became of them.

Put here: which step of the core an op is. Keep out: decisions. Every op asks the ledger how its entries stand now, so a
retry, a re-execution from failure and another process continue and repeat no call whose answer is known.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg
import pandas as pd

from pm_dagster.config.masking import scrubbed
from pm_dagster.dispatch.worker import Sent
from pm_dagster.errors import ProcessManagerError
from pm_dagster.orchestration.frames import claimed_from, entries_frame, entry_ids, targets_frame, targets_from
from pm_dagster.orchestration.metadata import dispatch_metadata, report_frame
from pm_dagster.orchestration.outcomes import final_report, together
from pm_dagster.orchestration.resources import DispatchSession
from pm_dagster.orchestration.retries import RETRY, translated
from pm_dagster.waiting_frame import from_frame


@contextmanager
def _closing(context: dg.OpExecutionContext, session: DispatchSession, ids: list[int]) -> Iterator[None]:
    """Close what is known, also when the op fails: rows that went well wait neither for its retry nor for other ops.

    One of those may fail for good, and then the last op, which closes what could not be closed here, never comes.
    """
    with translated():
        try:
            yield
        except ProcessManagerError:
            _close(context, session, ids)
            raise
        _close(context, session, ids)


def _close(context: dg.OpExecutionContext, session: DispatchSession, ids: list[int]) -> None:
    try:
        session.dispatch.close(ids)
    except ProcessManagerError as error:
        # What sent them has succeeded or failed by itself; the last op, or the next dispatch, closes them.
        context.log.warning("rows whose outcome is known are to be closed later: %s", scrubbed(str(error)))


def _with_followers(sent: Sent, ids: list[int]) -> Sent:
    """What was sent; the new generations of rows that were corrected are to be closed as well."""
    ids += [entry.entry_id for entry in sent.followed]
    return sent


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
    session: dg.ResourceParam[DispatchSession], waiting_jobs: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Claim, and split by branch."""
    with translated():
        claimed = session.dispatch.claim(from_frame(waiting_jobs))
    session.refused = claimed.refused
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
    """Send the new runs that are not answered yet."""
    ids = entry_ids(new)
    with _closing(context, session, ids):
        return _with_followers(session.dispatch.send(session.dispatch.resume(ids)), ids)


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
    ids = entry_ids(repair)
    with _closing(context, session, ids):
        targets, settled = session.dispatch.prepare(session.dispatch.resume(ids))
        _with_followers(settled, ids)
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
    """Send the repairs that are not answered yet."""
    ids = entry_ids(targets)
    with _closing(context, session, ids):
        return _with_followers(session.dispatch.send_targets(targets_from(targets)), ids)


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
    claimed = claimed_from(waiting_jobs, new, repair)
    whole = together(sent)
    entries = claimed.new + claimed.repair
    with translated():
        session.dispatch.resume([entry.entry_id for entry in (*entries, *whole.followed)])
        closed = session.dispatch.finish(entries, whole)
        report = final_report(session, len(waiting_jobs), claimed, whole, closed)
    context.add_output_metadata(dispatch_metadata(report, waiting_jobs))
    return report_frame(report)
