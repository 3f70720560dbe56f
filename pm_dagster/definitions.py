"""The Dagster code location: everything, put together.

Environment variables are read when a run needs them, so the code location loads without any.
"""

from typing import Any

import dagster as dg

from pm_dagster.orchestration import automation, checks, cluster, dispatch_graph
from pm_dagster.orchestration.resources import ControlTableResource, dispatch_session
from pm_dagster.orchestration.workspace import WorkspaceResource


def build_definitions(**overrides: Any) -> dg.Definitions:  # noqa: ANN401 resources are of any type
    """Everything in the code location; ``overrides`` replace resources by their key."""
    resources = {
        "control_table": ControlTableResource(),
        "databricks": WorkspaceResource(),
        "session": dispatch_session,
        **overrides,
    }
    return dg.Definitions(
        assets=[
            dispatch_graph.mm_run_wait_vw,
            dispatch_graph.waiting_jobs,
            dispatch_graph.dispatched_jobs,
            cluster.process_manager_on_cluster,
        ],
        asset_checks=[checks.no_quarantined_rows],
        jobs=[automation.process_manager(), cluster.process_manager_on_cluster_job],
        sensors=[automation.waiting_jobs_sensor],
        schedules=[automation.process_manager_schedule],
        resources=resources,
        executor=dg.in_process_executor,
    )


defs = build_definitions()
