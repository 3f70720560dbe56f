"""The Databricks workspace as a resource.

Put here: the way from our sign-in to dagster-databricks' client resource. Keep out: the ways to sign in (``workspace``)
and where their secrets come from (``credentials``).
"""

from collections.abc import Callable, Mapping

import dagster as dg
from dagster_databricks import DatabricksClientResource
from databricks.sdk import WorkspaceClient
from databricks.sdk.core import Config
from databricks.sdk.credentials_provider import CredentialsStrategy
from pydantic import Field

from pm_dagster.config.credentials import WORKSPACE, resolved
from pm_dagster.config.masking import scrubbed
from pm_dagster.config.settings import Settings
from pm_dagster.databricks.deployed_jobs import SdkDeployedJobs
from pm_dagster.databricks.runs import SdkRuns
from pm_dagster.databricks.sign_in import signed_in
from pm_dagster.dispatch.ports import DatabricksRuns
from pm_dagster.errors import ConfigurationError
from pm_dagster.launcher.deployed_job import DeployedJobs
from pm_dagster.orchestration.environment import PREFIX_DESCRIPTION, environment_of

_MESSAGE_LIMIT = 500


class _As(CredentialsStrategy):
    """Signs requests as an SDK configuration does that is signed in already.

    dagster-databricks' own fields know three ways to sign in; this one carries all of ours.
    """

    def __init__(self, config: Config) -> None:
        self._config = config

    def auth_type(self) -> str:
        """The way that was taken."""
        return str(self._config.auth_type)

    def __call__(self, cfg: Config) -> Callable[[], dict[str, str]]:  # noqa: ARG002 the SDK's signature
        """What makes the headers of a request."""
        return self._config.authenticate


def databricks_client_resource(config: Config) -> DatabricksClientResource:
    """dagster-databricks' resource for a workspace that is signed in to; no field of it holds a secret."""
    return DatabricksClientResource(host=config.host, credentials_strategy=_As(config))


class WorkspaceResource(dg.ConfigurableResource["WorkspaceResource"]):
    """The Databricks workspace, signed in to from DATABRICKS_* or ARM_* variables when a run first needs it."""

    variable_prefix: str = Field(default="", description=PREFIX_DESCRIPTION)

    def environment(self) -> Mapping[str, str]:
        """The variables that this workspace is read from, as they are at this moment."""
        return environment_of(self.variable_prefix)

    def client(self, settings: Settings) -> WorkspaceClient:
        """Sign in with the credentials of this moment.

        Raises ConfigurationError, WorkspaceUnavailable when signing in gets no answer, Unavailable when a credential
        cannot be looked up now.
        """
        config = signed_in(resolved(self.environment(), WORKSPACE).environment, settings)
        try:
            with databricks_client_resource(config).process_config_and_initialize_cm() as resource:
                client: WorkspaceClient = resource.get_client().workspace_client
        except ValueError as error:
            # The SDK also looks at the variables of this process when it does not need them.
            message = scrubbed(str(error)).splitlines()[0][:_MESSAGE_LIMIT]
            raise ConfigurationError(f"the workspace credentials cannot be used: {message}") from None
        return client

    def runs(self, settings: Settings) -> DatabricksRuns:
        """The runs of the workspace. Raises as ``client``."""
        return SdkRuns(self.client(settings), settings)

    def deployed_jobs(self, settings: Settings) -> DeployedJobs:
        """The deployed jobs of the workspace. Raises as ``client``."""
        return SdkDeployedJobs(self.client(settings), settings)
