"""The view, and the waiting jobs that one dispatch reads from it."""

import dagster as dg
import pandas as pd

from pm_dagster.orchestration import names
from pm_dagster.orchestration.config import DispatchConfig
from pm_dagster.orchestration.metadata import waiting_metadata
from pm_dagster.orchestration.resources import ControlTable
from pm_dagster.orchestration.retries import RETRY, translated
from pm_dagster.waiting_frame import to_frame

mm_run_wait_vw = dg.AssetSpec(
    names.VIEW,
    group_name=names.GROUP,
    kinds={"postgres", "view"},
    description=(
        "The view of the control plane that lists every job whose state is WAITING. It belongs to the control plane's "
        "owner; Process Manager only reads it."
    ),
)


@dg.asset(
    name=names.WAITING_JOBS,
    group_name=names.GROUP,
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
    with translated():
        rows = control_table.control.waiting(config.limit or control_table.settings.dispatch_limit)
    frame = to_frame(rows)
    context.add_output_metadata(waiting_metadata(frame))
    return frame
