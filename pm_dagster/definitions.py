"""The Dagster code location: everything, put together.

The only place that names the environment variables of the workspace. They are read when a run needs them, so the code
location loads without any. The PM_* and libpq variables of the control table are named by ``core.settings``.
"""

import os
from collections.abc import Mapping
from typing import Any

import dagster as dg
from dagster_databricks import DatabricksClientResource
from dagster_databricks.resources import AzureServicePrincipalCredentials, OauthCredentials

from pm_dagster.core.errors import ConfigurationError, WorkspaceUnavailable
from pm_dagster.core.ports import DatabricksRuns
from pm_dagster.core.settings import Settings
from pm_dagster.orchestration import assets, automation, checks, graph
from pm_dagster.orchestration.resources import ControlTableResource, dispatch_session
from pm_dagster.workspace.client import check_host
from pm_dagster.workspace.runs import SdkRuns
from pm_dagster.workspace.scrub import scrubbed

#: The variables of each way to sign in, by the SDK's name for it; DATABRICKS_AUTH_TYPE chooses when several are set.
SIGN_INS: Mapping[str, tuple[str, ...]] = {
    "pat": ("DATABRICKS_TOKEN",),
    "oauth-m2m": ("DATABRICKS_CLIENT_ID", "DATABRICKS_CLIENT_SECRET"),
    "azure-client-secret": ("ARM_CLIENT_ID", "ARM_CLIENT_SECRET", "ARM_TENANT_ID"),
}


def sign_in(environment: Mapping[str, str]) -> str:
    """The one way to sign in that the variables describe, by the SDK's name for it.

    Raises ConfigurationError when none or several are set; several are allowed when DATABRICKS_AUTH_TYPE picks one.
    """
    complete = [way for way, names in SIGN_INS.items() if all(environment.get(name) for name in names)]
    chosen = environment.get("DATABRICKS_AUTH_TYPE")
    if chosen:
        complete = [way for way in complete if way == chosen]
    if len(complete) == 1:
        return complete[0]
    wanted = "; or ".join(f"{', '.join(names)} ({way})" for way, names in SIGN_INS.items())
    if complete:
        raise ConfigurationError(f"several ways to sign in are set; set DATABRICKS_AUTH_TYPE to one of {complete}")
    raise ConfigurationError(f"no complete way to sign in to the workspace is set; it takes {wanted}")


def databricks_client_resource(environment: Mapping[str, str]) -> DatabricksClientResource:
    """dagster-databricks' resource for what is set. It holds names of variables, not their values."""
    host = dg.EnvVar("DATABRICKS_HOST")
    way = sign_in(environment)
    if way == "pat":
        return DatabricksClientResource(host=host, token=dg.EnvVar("DATABRICKS_TOKEN"))
    if way == "oauth-m2m":
        oauth = OauthCredentials(
            client_id=dg.EnvVar("DATABRICKS_CLIENT_ID"), client_secret=dg.EnvVar("DATABRICKS_CLIENT_SECRET")
        )
        return DatabricksClientResource(host=host, oauth_credentials=oauth)
    azure = AzureServicePrincipalCredentials(
        azure_client_id=dg.EnvVar("ARM_CLIENT_ID"),
        azure_client_secret=dg.EnvVar("ARM_CLIENT_SECRET"),
        azure_tenant_id=dg.EnvVar("ARM_TENANT_ID"),
    )
    return DatabricksClientResource(host=host, azure_credentials=azure)


class WorkspaceResource(dg.ConfigurableResource["WorkspaceResource"]):
    """The Databricks workspace, signed in to from DATABRICKS_* or ARM_* variables when a run first needs it."""

    def runs(self, settings: Settings) -> DatabricksRuns:
        """The Jobs API. Raises ConfigurationError, or WorkspaceUnavailable when signing in gets no answer."""
        check_host(os.environ.get("DATABRICKS_HOST"))
        resource = databricks_client_resource(os.environ)
        try:
            with resource.process_config_and_initialize_cm() as signed_in:
                client = signed_in.get_client().workspace_client
        except OSError as error:
            raise WorkspaceUnavailable(f"signing in failed: {_safe(error)}", maybe_applied=False) from None
        except Exception as error:  # noqa: BLE001 credential providers raise what they like
            raise ConfigurationError(f"the workspace credentials cannot be used: {_safe(error)}") from None
        return SdkRuns(client, settings)


def _safe(error: Exception) -> str:
    secrets = [os.environ.get(name) for names in SIGN_INS.values() for name in names]
    return scrubbed(str(error), secrets)[:500]


def build_definitions(**overrides: Any) -> dg.Definitions:  # noqa: ANN401 resources are of any type
    """Everything in the code location; ``overrides`` replace resources by their key."""
    resources = {
        "control_table": ControlTableResource(),
        "databricks": WorkspaceResource(),
        "session": dispatch_session,
        **overrides,
    }
    return dg.Definitions(
        assets=[assets.mm_run_wait_vw, assets.waiting_jobs, graph.dispatched_jobs],
        asset_checks=[checks.no_quarantined_rows],
        jobs=[automation.process_manager],
        sensors=[automation.waiting_jobs_sensor],
        schedules=[automation.process_manager_schedule],
        resources=resources,
        executor=dg.in_process_executor,
    )


defs = build_definitions()
