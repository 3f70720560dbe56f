"""Signing in to the workspace by dagster-databricks' client resource. Only a run that calls the workspace imports this.

``import dagster_databricks`` imports pyspark, aiohttp and every service of databricks-sdk, which is a third of what a
dispatch of one row costs. The client resource needs none of these, so it is taken from copies of the few modules that
define it. Where that fails, with a version of tomorrow, the package is imported as ever.
"""

import builtins
import logging
import sys
from collections.abc import Callable, Mapping
from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

from databricks.sdk.core import Config
from databricks.sdk.credentials_provider import CredentialsStrategy

from pm_dagster.config.masking import scrubbed
from pm_dagster.config.settings import Settings
from pm_dagster.databricks.sign_in import signed_in
from pm_dagster.errors import ConfigurationError
from pm_dagster.logs import fields

if TYPE_CHECKING:
    from dagster_databricks import DatabricksClientResource

_log = logging.getLogger(__name__)
_PACKAGE = "dagster_databricks"
_MESSAGE_LIMIT = 500


def workspace_config(environment: Mapping[str, str], settings: Settings) -> Config:
    """Sign in as the variables say.

    Args:
        environment: ``DATABRICKS_*`` and ``ARM_*`` variables, without references to secrets.
        settings: The time-out of a call in seconds, and whether a token may travel without TLS.

    Returns:
        The configuration of dagster-databricks' client.

    Raises:
        ConfigurationError: The variables do not say how to sign in.
        WorkspaceUnavailable: Signing in gets no answer.
    """
    config = signed_in(environment, settings)
    if _PACKAGE not in sys.modules:
        try:
            return _config_of(client_resource(config, alone=True))
        except Exception as error:  # noqa: BLE001 a version that is put together in another way
            _log.info("dagster-databricks is imported as a whole", extra=fields(error=type(error).__name__))
    try:
        with client_resource(config).process_config_and_initialize_cm() as initialized:
            return _config_of(initialized)
    except ValueError as error:
        # The SDK also looks at the variables of this process when it does not need them.
        message = scrubbed(str(error)).splitlines()[0][:_MESSAGE_LIMIT]
        raise ConfigurationError(f"the workspace credentials cannot be used: {message}") from None


def client_resource(config: Config, *, alone: bool = False) -> "DatabricksClientResource":
    """dagster-databricks' resource for a workspace that is signed in to; no field of it holds a secret.

    Args:
        config: The SDK's configuration by which its requests are signed.
        alone: Take it from copies of the modules that define it, and leave the rest of the package alone.
    """
    if alone:
        resource = _Copies(_PACKAGE).module(f"{_PACKAGE}.resources").DatabricksClientResource
    else:
        from dagster_databricks import DatabricksClientResource as resource  # noqa: N813, PLC0415 see the module
    made: DatabricksClientResource = resource(host=config.host, credentials_strategy=_SignedIn(config))
    return made


def _config_of(resource: "DatabricksClientResource") -> Config:
    config: Config = resource.get_client().workspace_client.config
    return config


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


class _Copies:
    """Copies of a package's modules, executed without the package and without what they import for other purposes.

    They are in no list of the process: whoever else imports the package gets it whole, and no other thread sees a
    module that lacks something.
    """

    def __init__(self, package: str) -> None:
        found = find_spec(package)
        if found is None or found.submodule_search_locations is None:
            raise ModuleNotFoundError(package)
        self._folders = list(found.submodule_search_locations)
        self._package = package
        self._modules: dict[str, ModuleType] = {}

    def module(self, name: str) -> ModuleType:
        """The copy of the module of that name, executed once."""
        if name not in self._modules:
            spec = PathFinder.find_spec(name, self._folders)
            if spec is None or spec.loader is None:
                raise ModuleNotFoundError(name)
            self._modules[name] = module_from_spec(spec)
            vars(self._modules[name])["__builtins__"] = vars(builtins) | {"__import__": self._import}
            spec.loader.exec_module(self._modules[name])
        return self._modules[name]

    def _import(
        self,
        name: str,
        its_globals: Mapping[str, object] | None = None,
        its_locals: Mapping[str, object] | None = None,
        wanted: tuple[str, ...] | None = (),
        level: int = 0,
    ) -> Any:  # noqa: ANN401 whatever stands for a module
        """What the copies have for ``__import__``."""
        if name == "databricks.sdk" and wanted == ("WorkspaceClient",):
            return SimpleNamespace(WorkspaceClient=_Configured)
        if name.startswith(f"{self._package}.") and wanted:
            return self.module(name)
        if name in (self._package, "dagster_pyspark") and not wanted:
            # Their versions are read when a Spark job is submitted, which we do not do.
            return ModuleType(name)
        return builtins.__import__(name, its_globals, its_locals, wanted or (), level)


class _Configured:
    """What we use of ``WorkspaceClient(config=...)``; the class itself imports every service."""

    def __init__(self, *, config: Config) -> None:
        self.config = config
