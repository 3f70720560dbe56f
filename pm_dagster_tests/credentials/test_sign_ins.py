"""Every way to sign in to the workspace does a whole dispatch, from the command line and under Dagster."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import dagster as dg
import pytest

from pm_dagster_tests.credentials import azure_cli, entra_site
from pm_dagster_tests.credentials.deployment import Deployment
from pm_dagster_tests.credentials.internet import PlainSite, listening

_ROWS = 3
_RESOURCE = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Databricks/workspaces/w"
Way = Callable[[Deployment], dict[str, str]]


def _host(deployment: Deployment) -> dict[str, str]:
    return {"DATABRICKS_HOST": deployment.workspace.url}


def _pat(deployment: Deployment) -> dict[str, str]:
    return deployment.with_token()


def _oauth_m2m(deployment: Deployment) -> dict[str, str]:
    deployment.known.append(deployment.workspace.local.client_secret)
    return {
        **_host(deployment),
        "DATABRICKS_CLIENT_ID": deployment.workspace.local.client_id,
        "DATABRICKS_CLIENT_SECRET": deployment.workspace.local.client_secret,
    }


def _azure_client_secret(deployment: Deployment) -> dict[str, str]:
    return {
        **_host(deployment),
        "ARM_TENANT_ID": entra_site.TENANT,
        "ARM_CLIENT_ID": entra_site.CLIENT_ID,
        "ARM_CLIENT_SECRET": deployment.entra.client_secret,
    }


def _azure_msi(deployment: Deployment) -> dict[str, str]:
    return {**_host(deployment), "ARM_USE_MSI": "true"}


def _azure_msi_by_id(deployment: Deployment) -> dict[str, str]:
    return {**_azure_msi(deployment), "ARM_CLIENT_ID": entra_site.CLIENT_ID, "DATABRICKS_AZURE_RESOURCE_ID": _RESOURCE}


def _azure_cli(deployment: Deployment) -> dict[str, str]:
    folder = deployment.folder / "bin"
    variables = azure_cli.install(folder)
    tokens = {
        resource: deployment.entra.issue(resource, upn="somebody@example.com")
        for resource in (entra_site.DATABRICKS, entra_site.MANAGEMENT)
    }
    azure_cli.log_in(folder, tokens)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return {**_host(deployment), **variables, "PATH": path, "ARM_TENANT_ID": entra_site.TENANT}


def _azure_cli_by_itself(deployment: Deployment) -> dict[str, str]:
    return {name: value for name, value in _azure_cli(deployment).items() if name != "ARM_TENANT_ID"}


def _profile(deployment: Deployment) -> dict[str, str]:
    (deployment.folder / ".databrickscfg").write_text(
        f"[team]\nhost = {deployment.workspace.url}\ntoken = {deployment.token()}\n", encoding="utf-8"
    )
    return {"DATABRICKS_CONFIG_PROFILE": "team"}


def _default_profile(deployment: Deployment) -> dict[str, str]:
    (deployment.folder / ".databrickscfg").write_text(
        f"[DEFAULT]\nhost = {deployment.workspace.url}\ntoken = {deployment.token()}\n", encoding="utf-8"
    )
    return {}


def _chosen_among_several(deployment: Deployment) -> dict[str, str]:
    wrong = {"ARM_CLIENT_ID": "x", "ARM_CLIENT_SECRET": deployment.secret(), "ARM_TENANT_ID": "x"}
    return {**deployment.with_token(), **wrong, "DATABRICKS_AUTH_TYPE": "pat"}


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
def _machine(deployment: Deployment) -> Iterator[dict[str, str]]:
    """A machine with a managed identity."""
    with listening(PlainSite, internet=deployment.net, host="machine") as port:
        deployment.net.sites["machine"] = deployment.entra.managed_identity
        yield {
            "IDENTITY_ENDPOINT": f"http://127.0.0.1:{port}/msi/token",
            "IDENTITY_HEADER": deployment.entra.identity_header,
        }


@ways
def test_a_dispatch_from_the_command_line(deployment: Deployment, way: str) -> None:
    deployment.add(_ROWS)
    with _machine(deployment) as machine:
        numbers = deployment.dispatch(**deployment.with_password(), **machine, **_WAYS[way](deployment))
    assert numbers["scheduled"] == _ROWS
    assert (deployment.statuses(), deployment.runs) == ({"SCHEDULED": _ROWS}, _ROWS)


@ways
def test_a_dispatch_under_dagster(deployment: Deployment, way: str) -> None:
    deployment.add(_ROWS)
    with _machine(deployment) as machine, dg.DagsterInstance.ephemeral() as instance:
        deployment.use(deployment.with_password(), machine, _WAYS[way](deployment))
        assert deployment.run_dagster(instance).success
    assert (deployment.statuses(), deployment.runs) == ({"SCHEDULED": _ROWS}, _ROWS)


def test_a_managed_identity_that_the_workspace_does_not_know_yet_shows_its_resource(deployment: Deployment) -> None:
    deployment.add()
    with _machine(deployment) as machine:
        deployment.dispatch(**deployment.with_password(), **machine, **_azure_msi_by_id(deployment))
    (started,) = [asked for asked in deployment.net.asked if asked.path.endswith("/run-now")]
    assert started.headers["x-databricks-azure-workspace-resource-id"] == _RESOURCE
    assert deployment.entra.accepts(started.headers["x-databricks-azure-sp-management-token"], entra_site.MANAGEMENT)


def test_one_token_serves_a_whole_dispatch(deployment: Deployment) -> None:
    deployment.add(_ROWS)
    with _machine(deployment) as machine:
        deployment.dispatch(**deployment.with_password(), **machine, **_azure_msi(deployment))
    assert len([asked for asked in deployment.net.asked if asked.host == "machine"]) == 1


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
def test_a_secret_that_is_refused_stops_the_dispatch(deployment: Deployment, way: str, words: str) -> None:
    deployment.add(_ROWS)
    wrong = dict.fromkeys(
        ("DATABRICKS_CLIENT_SECRET", "ARM_CLIENT_SECRET", "IDENTITY_HEADER", "DATABRICKS_TOKEN"), deployment.secret()
    )
    with _machine(deployment) as machine:
        variables = {**deployment.with_password(), **machine, **_WAYS[way](deployment)}
        done = deployment.pm("dispatch", **variables | {name: wrong[name] for name in wrong if name in variables})
    errors = [line for line in done.stderr.strip().splitlines() if not _EVENT.match(line)]
    assert (done.returncode, len(errors)) == (1, 1), done.stderr
    assert words in errors[0]
    deployment.assert_silent(done.stdout + done.stderr)
    assert deployment.statuses() == {"WAITING": _ROWS}


@pytest.mark.parametrize("way", ["pat", "oauth-m2m", "azure-client-secret", "azure-msi"])
def test_a_workspace_out_of_reach_is_no_matter_of_credentials(deployment: Deployment, way: str) -> None:
    deployment.add()
    with _machine(deployment) as machine:
        variables = {**deployment.with_password(), **machine, **_WAYS[way](deployment)}
        del deployment.net.sites[deployment.workspace.host]
        done = deployment.pm("dispatch", **variables)
    assert done.returncode == 1
    assert "cannot connect" in done.stderr or "broke" in done.stderr
    assert deployment.statuses() == {"WAITING": 1}


def test_a_directory_out_of_reach_is_no_matter_of_credentials(deployment: Deployment) -> None:
    deployment.add()
    deployment.entra.down = True
    with _machine(deployment) as machine:
        done = deployment.pm("dispatch", **deployment.with_password(), **machine, **_azure_msi(deployment))
    assert done.returncode == 1
    assert "Entra ID does not answer (HTTP 503)" in done.stderr
    assert deployment.statuses() == {"WAITING": 1}
