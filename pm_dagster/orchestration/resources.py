"""The resources of a run: the control table, the Databricks workspace, and the dispatch over both.

Credentials are looked up anew for each run and each tick, when they are first needed, so a rotated one needs no
restart. They are in no field of a resource, so no UI, run or event can show them. The ways to sign in are in
``databricks.sign_in``; where secrets come from is in ``config.credentials``.
"""

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import dagster as dg
from pydantic import Field

from pm_dagster.config.credentials import DATABASE, WORKSPACE, resolved
from pm_dagster.config.masking import scrubbed
from pm_dagster.config.settings import Settings, settings_from
from pm_dagster.dispatch.ports import ControlPlane, DatabricksRuns
from pm_dagster.dispatch.sender import Sender, Stage
from pm_dagster.dispatch.service import Dispatch
from pm_dagster.errors import ProcessManagerError
from pm_dagster.launcher.deployed_job import DeployedJobs
from pm_dagster.ledger.control_plane import PostgresControlPlane
from pm_dagster.orchestration import names
from pm_dagster.orchestration.execution import EventsByOp

if TYPE_CHECKING:
    from databricks.sdk.core import Config

#: What a second set of variables replaces as a whole: no part of one database or workspace completes another.
_REPLACED = ("PM_", "PG", "DATABRICKS_", "ARM_")
_PREFIX_DESCRIPTION = (
    "A prefix of the environment variables that this resource reads. With SECOND_ it reads SECOND_PM_SCHEMA instead of "
    "PM_SCHEMA. Use it for a second control table or workspace in one code location. When it is empty, the resource "
    "reads PM_*, DATABRICKS_* and ARM_*."
)


def environment_of(prefix: str, given: Mapping[str, str] | None = None) -> Mapping[str, str]:
    """The variables that a resource reads, as they are at this moment.

    Args:
        prefix: Begins the names of a second set: with ``SECOND_``, SECOND_PM_SCHEMA stands for PM_SCHEMA, and PM_*,
            PG*, DATABRICKS_* and ARM_* without it do not count. Empty: the variables as they are.
        given: The variables to choose from; those of the process by default.
    """
    found = os.environ if given is None else given
    if not prefix:
        return found
    others = {name: value for name, value in found.items() if not name.startswith((*_REPLACED, prefix))}
    return others | {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}


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


class ControlTableResource(dg.ConfigurableResource[ControlTable]):
    """The control table in Postgres and its ledger. An empty field takes its PM_* variable, or the default of that."""

    variable_prefix: str = Field(default="", description=_PREFIX_DESCRIPTION)

    concurrency: int | None = Field(
        default=None, ge=1, le=256, description="The most calls to the Jobs API at once. Empty: PM_CONCURRENCY."
    )
    deadline_seconds: float | None = Field(
        default=None,
        gt=0,
        le=840,
        description=(
            "A dispatch stops sending after this many seconds and leaves the other rows WAITING for the next one. "
            "Empty: PM_DEADLINE_SECONDS."
        ),
    )
    linger_seconds: float | None = Field(
        default=None,
        ge=0,
        description=(
            "When all rows are done, the dispatch looks for further rows once a second, and ends when none came for so "
            "many seconds. What comes is dispatched about a second later, in the same run. 0 means that it ends at "
            "once. Empty: PM_LINGER_SECONDS."
        ),
    )
    rate_run_now: float | None = Field(
        default=None, ge=0, description="The most run-now calls per second; 0 means no limit. Empty: PM_RATE_RUN_NOW."
    )
    rate_repair: float | None = Field(
        default=None, ge=0, description="The most repair calls per second; 0 means no limit. Empty: PM_RATE_REPAIR."
    )
    rate_get_run: float | None = Field(
        default=None, ge=0, description="The most runs/get calls per second; 0 means no limit. Empty: PM_RATE_GET_RUN."
    )
    max_attempts: int | None = Field(
        default=None,
        ge=1,
        description=(
            "A row is refused for good after this many refusals that another attempt could have changed. "
            "Empty: PM_MAX_ATTEMPTS."
        ),
    )
    missing_run: str | None = Field(
        default=None,
        pattern="^(fresh-run|fail)$",
        description=(
            "What happens to a repair whose run no longer exists or never ran: fresh-run starts a new run, fail marks "
            "the row FAILED. Empty: PM_MISSING_RUN."
        ),
    )
    queue: bool | None = Field(
        default=None,
        description=(
            "Whether a new run waits in the queue of its Databricks job while that is at its concurrency limit. "
            "Without a queue such a run is skipped. Empty: PM_QUEUE."
        ),
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
        actor = names.actor(context.run.run_id) if context.run else "Dagster sensor"

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
        """Let the sensor see that this run lives. A failure is only logged: the op fails by it too, and is retried."""
        try:
            table.control.register()
        except ProcessManagerError as error:
            if context.log:
                context.log.warning("This run is not registered in the ledger yet: %s", scrubbed(str(error)))


class Workspace(Protocol):
    """A workspace that has not been connected to yet."""

    def runs(self, settings: Settings) -> DatabricksRuns:
        """The Jobs API of the workspace."""


class WorkspaceResource(dg.ConfigurableResource["WorkspaceResource"]):
    """The Databricks workspace. A run signs in to it when it first needs it, with DATABRICKS_* or ARM_* variables."""

    variable_prefix: str = Field(default="", description=_PREFIX_DESCRIPTION)

    def environment(self) -> Mapping[str, str]:
        """The variables that this workspace is read from, as they are at this moment."""
        return environment_of(self.variable_prefix)

    def signed_in(self, settings: Settings) -> "Config":
        """The configuration of the client, signed in with the credentials of this moment.

        Raises:
            ConfigurationError: The variables do not say how to sign in.
            WorkspaceUnavailable: Signing in gets no answer.
            Unavailable: A credential cannot be looked up now.
        """
        from pm_dagster.orchestration.databricks_client import workspace_config  # noqa: PLC0415 see the module

        return workspace_config(resolved(self.environment(), WORKSPACE).environment, settings)

    def runs(self, settings: Settings) -> DatabricksRuns:
        """The runs of the workspace. Raises as ``signed_in``."""
        from pm_dagster.databricks.runs import SdkRuns  # noqa: PLC0415 as above

        return SdkRuns(self.signed_in(settings), settings)

    def deployed_jobs(self, settings: Settings) -> DeployedJobs:
        """The deployed jobs of the workspace. Raises as ``signed_in``."""
        from pm_dagster.databricks.deployed_jobs import SdkDeployedJobs  # noqa: PLC0415 as above

        return SdkDeployedJobs(self.signed_in(settings), settings)


#: The ops that send, by what they await of the sender.
_SENDING = {
    Stage.START: "trigger_new_jobs",
    Stage.LOOK_UP: "fetch_latest_repair_ids",
    Stage.REPAIR: "repair_job_runs",
}


class DispatchSession:
    """The one dispatch of a run: its ops share the rate limiter, the deadline and the identity of the dispatcher.

    ``events`` sorts what the shared sending logs by op. ``end`` has to be called before the control table's.
    """

    def __init__(self, table: ControlTable, workspace: Workspace) -> None:
        self._table = table
        self._workspace = workspace
        self.events = EventsByOp(self._op_of)

    @cached_property
    def dispatch(self) -> Dispatch:
        """The dispatch, made when first used: signing in to the workspace may fail, and then the op is retried."""
        settings = self._table.settings
        return Dispatch(self._table.control, self._workspace.runs(settings), settings)

    @cached_property
    def _sender(self) -> Sender:
        return Sender(self.dispatch)

    def sender(self, ops: Collection[str]) -> Sender:
        """What the ops feed and await; it has begun with both branches where this run sends both.

        Args:
            ops: The names of the ops of this run. Where one that sends is not among them, each sends its own rows.
        """
        if self.sends_all(ops):
            self._sender.begin()
        return self._sender

    def sends_all(self, ops: Collection[str]) -> bool:
        """Whether a run of these ops sends both branches; a part of it that is executed again takes no further rows."""
        return set(ops).issuperset(_SENDING.values())

    def rest(self) -> Dispatch:
        """The dispatch, once nothing is being sent any more."""
        self._sender.rest()
        return self.dispatch

    def end(self, log: dg.DagsterLogManager | None = None) -> None:
        """Let what is being sent end early; returns when nothing of it uses the control table any more."""
        try:
            if "_sender" in vars(self):
                self._sender.end()
        finally:
            self.events.end(log)

    def _op_of(self, entry_id: int) -> str | None:
        stage = self._sender.stage_of(entry_id) if "_sender" in vars(self) else None
        return _SENDING[stage] if stage else None


@dg.resource(
    required_resource_keys={"control_table", "databricks"},
    description=(
        "The dispatch of this run, over the control table and the workspace. Its ops share the rate limiter, the "
        "deadline and the dispatcher's entry in the ledger."
    ),
)
def dispatch_session(context: dg.InitResourceContext) -> Iterator[DispatchSession]:
    """One session for each run, or for each step with the multiprocess executor; both continue from the ledger.

    By keys, and no ``ResourceDependency``: Dagster opens a nested resource a second time for each resource that it is
    nested in, and then a run would be two dispatchers with a connection each.
    """
    session = DispatchSession(context.resources.control_table, context.resources.databricks)
    try:
        yield session
    finally:
        # Before the control table's own end: a dispatcher that ended must not write.
        session.end(context.log)
