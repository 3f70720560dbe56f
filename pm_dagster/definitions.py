"""The Dagster code location: everything, put together.

Environment variables are read when a run needs them, so the code location loads without any.
"""

import gc
import warnings
from collections.abc import Sequence
from typing import Any

import dagster as dg

from pm_dagster.orchestration import assets, automation, jobs
from pm_dagster.orchestration.resources import (
    ControlTable,
    ControlTableResource,
    Workspace,
    WorkspaceResource,
    dispatch_session,
    environment_of,
)


def build_definitions(
    *,
    control_table: ControlTableResource | ControlTable | None = None,
    databricks: WorkspaceResource | Workspace | jobs.ClusterWorkspace | None = None,
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
    return dg.Definitions(
        assets=_with_code_references(
            [assets.mm_run_wait_vw, assets.waiting_jobs, assets.dispatched_jobs, assets.process_manager_on_cluster]
        ),
        asset_checks=[assets.no_quarantined_rows],
        jobs=[jobs.process_manager(environment_of(prefix)), jobs.process_manager_on_cluster_job],
        sensors=[automation.waiting_jobs_sensor],
        schedules=[automation.process_manager_schedule],
        resources={
            "control_table": _resource(table),
            "databricks": _resource(WorkspaceResource() if databricks is None else databricks),
            "session": session or dispatch_session,
        },
        executor=dg.in_process_executor,
    )


def _with_code_references(found: Sequence[dg.AssetsDefinition | dg.AssetSpec]) -> Sequence[Any]:
    """The assets with links to their code; without a warning in every log that Dagster 1.13 has these in beta."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        return dg.with_source_code_references(found)


def _resource(value: object) -> Any:  # noqa: ANN401 Dagster's own classes, and whatever stands for one
    """A resource of Dagster, as others can depend on it; a plain object becomes one."""
    return value if isinstance(value, dg.ConfigurableResource) else dg.ResourceDefinition.hardcoded_resource(value)


defs = build_definitions()

# What was imported and built meanwhile, as in ``orchestration``: it stays as long as the process.
gc.freeze()
