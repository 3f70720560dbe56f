"""Every way to sign in to the workspace does a whole dispatch, from the command line and under Dagster."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import dagster as dg
import pytest

from pm_dagster_tests.credentials import azure_cli, entra_site
from pm_dagster_tests.credentials.internet import PlainSite, listening
from pm_dagster_tests.credentials.world import World

_ROWS = 3
_RESOURCE = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Databricks/workspaces/w"
Way = Callable[[World], dict[str, str]]


def _host(world: World) -> dict[str, str]:
    return {"DATABRICKS_HOST": world.workspace.url}


def _pat(world: World) -> dict[str, str]:
    return world.with_token()


def _oauth_m2m(world: World) -> dict[str, str]:
    world.known.append(world.workspace.local.client_secret)
    return {
        **_host(world),
        "DATABRICKS_CLIENT_ID": world.workspace.local.client_id,
        "DATABRICKS_CLIENT_SECRET": world.workspace.local.client_secret,
    }


def _azure_client_secret(world: World) -> dict[str, str]:
    return {
        **_host(world),
        "ARM_TENANT_ID": entra_site.TENANT,
        "ARM_CLIENT_ID": entra_site.CLIENT_ID,
        "ARM_CLIENT_SECRET": world.entra.client_secret,
    }


def _azure_msi(world: World) -> dict[str, str]:
    return {**_host(world), "ARM_USE_MSI": "true"}


def _azure_msi_by_id(world: World) -> dict[str, str]:
    return {**_azure_msi(world), "ARM_CLIENT_ID": entra_site.CLIENT_ID, "DATABRICKS_AZURE_RESOURCE_ID": _RESOURCE}


def _azure_cli(world: World) -> dict[str, str]:
    folder = world.folder / "bin"
    variables = azure_cli.install(folder)
    tokens = {
        resource: world.entra.issue(resource, upn="somebody@example.com")
        for resource in (entra_site.DATABRICKS, entra_site.MANAGEMENT)
    }
    azure_cli.log_in(folder, tokens)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return {**_host(world), **variables, "PATH": path, "ARM_TENANT_ID": entra_site.TENANT}


def _azure_cli_by_itself(world: World) -> dict[str, str]:
    return {name: value for name, value in _azure_cli(world).items() if name != "ARM_TENANT_ID"}


def _profile(world: World) -> dict[str, str]:
    (world.folder / ".databrickscfg").write_text(
        f"[team]\nhost = {world.workspace.url}\ntoken = {world.token()}\n", encoding="utf-8"
    )
    return {"DATABRICKS_CONFIG_PROFILE": "team"}


def _default_profile(world: World) -> dict[str, str]:
    (world.folder / ".databrickscfg").write_text(
        f"[DEFAULT]\nhost = {world.workspace.url}\ntoken = {world.token()}\n", encoding="utf-8"
    )
    return {}


def _chosen_among_several(world: World) -> dict[str, str]:
    wrong = {"ARM_CLIENT_ID": "x", "ARM_CLIENT_SECRET": world.secret(), "ARM_TENANT_ID": "x"}
    return {**world.with_token(), **wrong, "DATABRICKS_AUTH_TYPE": "pat"}


_WAYS: dict[str, Way] = {
    "pat": _pat,
    "oauth-m2m": _oauth_m2m,
    "azure-client-secret": _azure_client_secret,
    "azure-msi": _azure_msi,
    "azure-msi by id": _azure_msi_by_id,
    "azure-cli": _azure_cli,
    "azure-cli by itself": _azure_cli_by_itself,
    "profile": _profile,
    "default profile": _default_profile,
    "chosen": _chosen_among_several,
}
ways = pytest.mark.parametrize("way", _WAYS)


@contextmanager
def _machine(world: World) -> Iterator[dict[str, str]]:
    """A machine with a managed identity."""
    with listening(PlainSite, internet=world.net, host="machine") as port:
        world.net.sites["machine"] = world.entra.managed_identity
        yield {
            "IDENTITY_ENDPOINT": f"http://127.0.0.1:{port}/msi/token",
            "IDENTITY_HEADER": world.entra.identity_header,
        }


@ways
def test_a_dispatch_from_the_command_line(world: World, way: str) -> None:
    world.add(_ROWS)
    with _machine(world) as machine:
        numbers = world.dispatch(**world.with_password(), **machine, **_WAYS[way](world))
    assert numbers["scheduled"] == _ROWS
    assert (world.statuses(), world.runs) == ({"SCHEDULED": _ROWS}, _ROWS)


@ways
def test_a_dispatch_under_dagster(world: World, way: str) -> None:
    world.add(_ROWS)
    with _machine(world) as machine, dg.DagsterInstance.ephemeral() as instance:
        world.use(world.with_password(), machine, _WAYS[way](world))
        assert world.run_dagster(instance).success
    assert (world.statuses(), world.runs) == ({"SCHEDULED": _ROWS}, _ROWS)


def test_a_managed_identity_that_the_workspace_does_not_know_yet_shows_its_resource(world: World) -> None:
    world.add()
    with _machine(world) as machine:
        world.dispatch(**world.with_password(), **machine, **_azure_msi_by_id(world))
    (started,) = [asked for asked in world.net.asked if asked.path.endswith("/run-now")]
    assert started.headers["x-databricks-azure-workspace-resource-id"] == _RESOURCE
    assert world.entra.accepts(started.headers["x-databricks-azure-sp-management-token"], entra_site.MANAGEMENT)


def test_one_token_serves_a_whole_dispatch(world: World) -> None:
    world.add(_ROWS)
    with _machine(world) as machine:
        world.dispatch(**world.with_password(), **machine, **_azure_msi(world))
    assert len([asked for asked in world.net.asked if asked.host == "machine"]) == 1


#: How a line of the log begins.
_EVENT = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z (INFO|WARNING) ")


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("oauth-m2m", "invalid_client"),
        ("azure-client-secret", "AADSTS7000215"),
        ("azure-msi", "Entra ID gives us no token"),
        ("pat", "does not accept our credentials"),
    ],
)
def test_a_secret_that_is_refused_stops_the_dispatch(world: World, way: str, words: str) -> None:
    world.add(_ROWS)
    wrong = dict.fromkeys(
        ("DATABRICKS_CLIENT_SECRET", "ARM_CLIENT_SECRET", "IDENTITY_HEADER", "DATABRICKS_TOKEN"), world.secret()
    )
    with _machine(world) as machine:
        variables = {**world.with_password(), **machine, **_WAYS[way](world)}
        done = world.pm("dispatch", **variables | {name: wrong[name] for name in wrong if name in variables})
    errors = [line for line in done.stderr.strip().splitlines() if not _EVENT.match(line)]
    assert (done.returncode, len(errors)) == (1, 1), done.stderr
    assert words in errors[0]
    world.assert_silent(done.stdout + done.stderr)
    assert world.statuses() == {"WAITING": _ROWS}


@pytest.mark.parametrize("way", ["pat", "oauth-m2m", "azure-client-secret", "azure-msi"])
def test_a_workspace_out_of_reach_is_no_matter_of_credentials(world: World, way: str) -> None:
    world.add()
    with _machine(world) as machine:
        variables = {**world.with_password(), **machine, **_WAYS[way](world)}
        del world.net.sites[world.workspace.host]
        done = world.pm("dispatch", **variables)
    assert done.returncode == 1
    assert "cannot connect" in done.stderr or "broke" in done.stderr
    assert world.statuses() == {"WAITING": 1}


def test_a_directory_out_of_reach_is_no_matter_of_credentials(world: World) -> None:
    world.add()
    world.entra.down = True
    with _machine(world) as machine:
        done = world.pm("dispatch", **world.with_password(), **machine, **_azure_msi(world))
    assert done.returncode == 1
    assert "Entra ID does not answer (HTTP 503)" in done.stderr
    assert world.statuses() == {"WAITING": 1}
