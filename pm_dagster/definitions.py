"""The Dagster code location: everything, put together.

Environment variables are read when a run needs them, so the code location loads without any.
"""

from typing import Any

import dagster as dg

from pm_dagster.orchestration import automation, checks, cluster, dispatch_graph
from pm_dagster.orchestration.environment import environment_of
from pm_dagster.orchestration.resources import ControlTable, ControlTableResource, Workspace, dispatch_session
from pm_dagster.orchestration.workspace import WorkspaceResource


def build_definitions(
    *,
    control_table: ControlTableResource | ControlTable | None = None,
    databricks: WorkspaceResource | Workspace | cluster.ClusterWorkspace | None = None,
    session: dg.ResourceDefinition | None = None,
) -> dg.Definitions:
    """Everything in the code location.

    Args:
        control_table: Takes the place of the control table that the PM_* variables lead to.
        databricks: Takes the place of the workspace that the DATABRICKS_* or ARM_* variables lead to.
        session: Takes the place of the dispatch over these two.
    """
    table = ControlTableResource() if control_table is None else control_table
    prefix = table.variable_prefix if isinstance(table, ControlTableResource) else ""
    opened = _resource(table)
    workspace = _resource(WorkspaceResource() if databricks is None else databricks)
    return dg.Definitions(
        assets=dg.with_source_code_references(
            [
                dispatch_graph.mm_run_wait_vw,
                dispatch_graph.waiting_jobs,
                dispatch_graph.dispatched_jobs,
                cluster.process_manager_on_cluster,
            ]
        ),
        asset_checks=[checks.no_quarantined_rows],
        jobs=[automation.process_manager(environment_of(prefix)), cluster.process_manager_on_cluster_job],
        sensors=[automation.waiting_jobs_sensor],
        schedules=[automation.process_manager_schedule],
        resources={
            "control_table": opened,
            "databricks": workspace,
            "session": session or dispatch_session,
        },
        executor=dg.in_process_executor,
    )


def _resource(value: object) -> Any:  # noqa: ANN401 Dagster's own classes, and whatever stands for one
    """A resource of Dagster, as others can depend on it; a plain object becomes one."""
    return value if isinstance(value, dg.ConfigurableResource) else dg.ResourceDefinition.hardcoded_resource(value)


defs = build_definitions()
