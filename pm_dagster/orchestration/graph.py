"""Who follows whom in a dispatch. No logic."""

import dagster as dg
import pandas as pd

from pm_dagster.orchestration import names, ops


@dg.graph_asset(
    name=names.DISPATCHED_JOBS,
    group_name=names.GROUP,
    kinds={"databricks", "postgres"},
    description=(
        "The waiting jobs after one dispatch: each row got a new run or a repair of its run in Databricks and is "
        "marked SCHEDULED in the control table, or it is left waiting or refused with the reason. Rows are never run "
        "twice; a bad row never stops the others."
    ),
)
def dispatched_jobs(waiting_jobs: pd.DataFrame) -> pd.DataFrame:
    """Both branches side by side, then one closing."""
    new, repair = ops.partition_waiting_jobs(waiting_jobs)
    started = ops.trigger_new_jobs(new)
    targets, settled = ops.fetch_latest_repair_ids(repair)
    repaired = ops.repair_job_runs(targets)
    marked: pd.DataFrame = ops.mark_scheduled(waiting_jobs, new, repair, [started, settled, repaired])
    return marked
