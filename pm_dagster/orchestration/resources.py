"""What a run holds while it lasts: the control table, the workspace, and the one dispatch over both.

Credentials are looked up anew for each run and each tick, when they are first needed, so a rotated one needs no
restart; they are in no resource config, so no UI, run or event can show them.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol

import dagster as dg
from pydantic import Field

from pm_dagster.config.credentials import DATABASE, resolved
from pm_dagster.config.masking import scrubbed
from pm_dagster.config.settings import Settings, settings_from
from pm_dagster.dispatch.ports import ControlPlane, DatabricksRuns
from pm_dagster.dispatch.service import Dispatch
from pm_dagster.errors import ProcessManagerError
from pm_dagster.ledger.control_plane import PostgresControlPlane
from pm_dagster.orchestration import names
from pm_dagster.orchestration.environment import PREFIX_DESCRIPTION, environment_of


class ControlTable:
    """The control plane as one dispatcher sees it, with the settings of this run.

    ``opens`` is called when either is first used: looking up credentials may fail, and then the op is retried.
    """

    def __init__(self, opens: Callable[[], tuple[ControlPlane, Settings]], variable_prefix: str = "") -> None:
        self._opens = opens
        self.variable_prefix = variable_prefix

    @cached_property
    def _opened(self) -> tuple[ControlPlane, Settings]:
        return self._opens()

    @property
    def control(self) -> ControlPlane:
        """The control plane. Raises ConfigurationError, or Unavailable when a credential cannot be looked up now."""
        return self._opened[0]

    @property
    def settings(self) -> Settings:
        """The settings. Raises as ``control``."""
        return self._opened[1]

    def end(self) -> None:
        """Give up the dispatcher's claims, if it ever was one."""
        if "_opened" in vars(self):
            self.control.end()


class Workspace(Protocol):
    """A workspace that has not been connected to yet."""

    def runs(self, settings: Settings) -> DatabricksRuns:
        """The Jobs API of the workspace."""


class ControlTableResource(dg.ConfigurableResource[ControlTable]):
    """The control table and its ledger. A field left empty takes its PM_* variable, or the default of that."""

    variable_prefix: str = Field(default="", description=PREFIX_DESCRIPTION)

    concurrency: int | None = Field(default=None, ge=1, le=256, description="How many API calls are in flight at once.")
    deadline_seconds: float | None = Field(
        default=None, gt=0, le=840, description="A dispatch stops sending after this many seconds and leaves the rest."
    )
    rate_run_now: float | None = Field(default=None, ge=0, description="run-now calls per second; 0 does not pace.")
    rate_repair: float | None = Field(default=None, ge=0, description="Repair calls per second; 0 does not pace.")
    rate_get_run: float | None = Field(default=None, ge=0, description="runs/get calls per second; 0 does not pace.")
    max_attempts: int | None = Field(
        default=None, ge=1, description="How many definite refusals that may pass a row gets before it is quarantined."
    )
    missing_run: str | None = Field(
        default=None,
        pattern="^(fresh-run|fail)$",
        description="What to do for a repair whose run is gone or never ran: fresh-run or fail.",
    )
    queue: bool | None = Field(
        default=None, description="Whether a busy Databricks job queues the run it is asked for."
    )

    def settings(self, environment: Mapping[str, str]) -> Settings:
        """The settings of the deployment with this run's own values on top."""
        mine: dict[str, Any] = {
            name: getattr(self, name) for name in type(self).model_fields if name != "variable_prefix"
        }
        return replace(settings_from(environment), **{name: value for name, value in mine.items() if value is not None})

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator[ControlTable]:
        """One control plane for the run, which gives up its claims at the end whatever happens."""
        actor = _actor(context)

        def opens() -> tuple[ControlPlane, Settings]:
            settings = self.settings(resolved(environment_of(self.variable_prefix), DATABASE).environment)
            return PostgresControlPlane(settings, actor), settings

        table = ControlTable(opens, self.variable_prefix)
        try:
            if context.run:
                self._register(table, context)
            yield table
        finally:
            table.end()

    def _register(self, table: ControlTable, context: dg.InitResourceContext) -> None:
        """Let the sensor see that this run lives; what stands in the way is for the op to meet, which is retried."""
        try:
            table.control.register()
        except ProcessManagerError as error:
            if context.log:
                context.log.warning("not registered in the ledger yet: %s", scrubbed(str(error)))


class DispatchSession:
    """The one dispatch of a run: its ops share the pace, the deadline and the identity of the dispatcher."""

    def __init__(self, table: ControlTable, workspace: Workspace) -> None:
        self._table = table
        self._workspace = workspace

    @cached_property
    def dispatch(self) -> Dispatch:
        """The dispatch, made when first used: signing in to the workspace may fail, and then the op is retried."""
        settings = self._table.settings
        return Dispatch(self._table.control, self._workspace.runs(settings), settings)


@dg.resource(
    required_resource_keys={"control_table", "databricks"},
    description="The dispatch of this run, over the control table and the workspace.",
)
def dispatch_session(context: dg.InitResourceContext) -> DispatchSession:
    """One session for each run, or for each step with the multiprocess executor; both continue from the ledger.

    By keys, and no ``ResourceDependency``: Dagster opens a nested resource a second time for each resource that it is
    nested in, and then a run would be two dispatchers with a connection each.
    """
    return DispatchSession(context.resources.control_table, context.resources.databricks)


def _actor(context: dg.InitResourceContext) -> str:
    return names.actor(context.run.run_id) if context.run else "Dagster sensor"
