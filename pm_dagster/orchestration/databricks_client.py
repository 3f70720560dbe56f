"""The workspace's client by dagster-databricks. Only a run that calls the workspace imports this module.

dagster-databricks imports pyspark, aiohttp and every service of databricks-sdk. The code location, its ticks and the
reading of the control table need none of these.
"""

from collections.abc import Callable, Mapping

from dagster_databricks import DatabricksClientResource
from databricks.sdk import WorkspaceClient
from databricks.sdk.core import Config
from databricks.sdk.credentials_provider import CredentialsStrategy

from pm_dagster.config.masking import scrubbed
from pm_dagster.config.settings import Settings
from pm_dagster.databricks.sign_in import signed_in
from pm_dagster.errors import ConfigurationError

_MESSAGE_LIMIT = 500


def workspace_client(environment: Mapping[str, str], settings: Settings) -> WorkspaceClient:
    """Sign in as the variables say.

    Args:
        environment: ``DATABRICKS_*`` and ``ARM_*`` variables, without references to secrets.
        settings: The time-out of a call in seconds, and whether a token may travel without TLS.

    Raises:
        ConfigurationError: The variables do not say how to sign in.
        WorkspaceUnavailable: Signing in gets no answer.
    """
    config = signed_in(environment, settings)
    try:
        with databricks_client_resource(config).process_config_and_initialize_cm() as resource:
            client: WorkspaceClient = resource.get_client().workspace_client
    except ValueError as error:
        # The SDK also looks at the variables of this process when it does not need them.
        message = scrubbed(str(error)).splitlines()[0][:_MESSAGE_LIMIT]
        raise ConfigurationError(f"the workspace credentials cannot be used: {message}") from None
    return client


class _SignedIn(CredentialsStrategy):
    """Signs requests as an SDK configuration does that is signed in already.

    dagster-databricks' own fields know three ways to sign in; this one carries all of ours.
    """

    def __init__(self, config: Config) -> None:
        self._config = config

    def auth_type(self) -> str:
        """The name of the way to sign in."""
        return str(self._config.auth_type)

    def __call__(self, cfg: Config) -> Callable[[], dict[str, str]]:  # noqa: ARG002 the SDK's signature
        """What makes the headers of a request."""
        return self._config.authenticate


def databricks_client_resource(config: Config) -> DatabricksClientResource:
    """dagster-databricks' resource for a workspace that is signed in to; no field of it holds a secret."""
    return DatabricksClientResource(host=config.host, credentials_strategy=_SignedIn(config))
