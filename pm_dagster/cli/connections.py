"""Opens what a command needs: settings, control plane, ledger reader, workspace; each part imported when asked for."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from pm_dagster.config.settings import Settings, settings_from

if TYPE_CHECKING:
    from databricks.sdk.core import Config
    from psycopg2.extensions import connection as Connection  # noqa: N812

    from pm_dagster.databricks.runs import SdkRuns
    from pm_dagster.dispatch.ports import ControlPlane


@dataclass(frozen=True)
class Invocation:
    """One call of `pm`: the environment that it reads, and whether the process is its own, signals included."""

    environment: Mapping[str, str]
    owns_process: bool = False


def invocation() -> Invocation:
    """The call of `pm` that the command belongs to."""
    found: Invocation = click.get_current_context().obj
    return found


def actor(command: str) -> str:
    """Who writes into the ledger, for the people who read it."""
    try:
        machine = socket.gethostname()
    except OSError:
        machine = "a machine without a name"
    return f"{command} on {machine}, process {os.getpid()}"


def settings() -> Settings:
    """The settings of this call, with the database's credentials as they are now.

    Raises:
        ConfigurationError: A setting or a credential cannot be used.
        Unavailable: A credential cannot be looked up now.
    """
    from pm_dagster.config.credentials import DATABASE, resolved  # noqa: PLC0415

    return settings_from(resolved(invocation().environment, DATABASE).environment)


@contextmanager
def control_plane(of: Settings, *, looks: bool = False) -> Iterator[ControlPlane]:
    """The control plane as one dispatcher, which leaves at the end whatever happens; it may only look."""
    from pm_dagster.ledger.control_plane import PostgresControlPlane  # noqa: PLC0415

    control = PostgresControlPlane(of, actor("pm"), looks=looks)
    try:
        yield control
    finally:
        control.end()


@contextmanager
def reader(of: Settings) -> Iterator[Connection]:
    """A connection on which Postgres itself refuses every write."""
    from pm_dagster.ledger.connection import transaction  # noqa: PLC0415

    with transaction(of) as connection:
        yield connection


def workspace_runs(of: Settings) -> SdkRuns:
    """The Jobs API of the configured workspace, with the credentials of this moment; raises as ``settings``."""
    from pm_dagster.config.credentials import WORKSPACE, resolved  # noqa: PLC0415

    return runs_of(workspace(resolved(invocation().environment, WORKSPACE).environment, of), of)


def workspace(environment: Mapping[str, str], of: Settings) -> Config:
    """Host and credentials of the workspace, signed in to as these variables say."""
    from pm_dagster.databricks.sign_in import signed_in  # noqa: PLC0415

    return signed_in(environment, of)


def runs_of(config: Config, of: Settings) -> SdkRuns:
    """The Jobs API of a workspace that is signed in to."""
    from pm_dagster.databricks.runs import SdkRuns  # noqa: PLC0415

    return SdkRuns(config, of)
