"""Secrets from a secret scope of the workspace."""

from __future__ import annotations

import pytest

from pm_dagster.config.credentials import DATABASE, resolved
from pm_dagster.errors import ConfigurationError, Unavailable
from pm_dagster_tests.credentials.deployment import SCOPE, WORKSPACE_HOST, Deployment
from pm_dagster_tests.credentials.internet import Asked, Reply, json_reply

_REFERENCE = f"databricks-secret://{SCOPE}/refDBpwd"


def _read(deployment: Deployment, reference: str = _REFERENCE, **variables: str) -> str:
    environment = {**deployment.with_token(), **variables, "PM_POSTGRES_PASSWORD": reference}
    return resolved(environment, DATABASE).environment["PM_POSTGRES_PASSWORD"]


@pytest.fixture
def scope(deployment: Deployment) -> Deployment:
    """A deployment whose workspace has a scope with a secret in it."""
    deployment.use()
    deployment.workspace.local.secrets.put(SCOPE, "refDBpwd", deployment.secret())
    return deployment


@pytest.mark.parametrize("reference", [_REFERENCE, f"{{{{secrets/{SCOPE}/refDBpwd}}}}"])
def test_the_value(scope: Deployment, reference: str) -> None:
    assert _read(scope, reference) == scope.known[-2]


def test_it_is_asked_anew_each_time(scope: Deployment) -> None:
    _read(scope)
    scope.workspace.local.secrets.put(SCOPE, "refDBpwd", changed := scope.secret())
    assert _read(scope) == changed


@pytest.mark.parametrize("reference", [f"databricks-secret://{SCOPE}/nothing", "databricks-secret://nothing/key"])
def test_no_such_scope_or_key(scope: Deployment, reference: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^PM_POSTGRES_PASSWORD \(secret scope .*no such scope or key"):
        _read(scope, reference)


def test_no_permission(scope: Deployment) -> None:
    scope.workspace.local.faults.add(
        "secrets/get", "status", status=403, code="PERMISSION_DENIED", message="No READ.", count=None
    )
    with pytest.raises(ConfigurationError, match="grant our user READ on the scope"):
        _read(scope)


def test_a_token_that_is_refused(scope: Deployment) -> None:
    with pytest.raises(ConfigurationError, match="does not accept our credentials") as caught:
        _read(scope, DATABRICKS_TOKEN=scope.secret())
    assert str(caught.value).startswith("PM_POSTGRES_PASSWORD (secret scope tp_dpf2cdl, key refDBpwd): ")
    scope.assert_silent(str(caught.value))


def test_a_workspace_that_stumbles_is_asked_again(scope: Deployment) -> None:
    scope.workspace.local.faults.add("secrets/get", "status", status=503, count=2)
    assert _read(scope) == scope.known[-2]
    scope.workspace.local.faults.add("secrets/get", "status", status=503, count=None)
    with pytest.raises(Unavailable, match="503"):
        _read(scope)


def test_a_workspace_out_of_reach(scope: Deployment) -> None:
    del scope.net.sites[WORKSPACE_HOST]
    with pytest.raises(Unavailable, match=r"cannot connect|broke"):
        _read(scope)


@pytest.mark.parametrize("value", [None, "%%%"])
def test_an_answer_without_a_value(scope: Deployment, value: object) -> None:
    def garbled(_: Asked) -> Reply:
        return json_reply({"key": "refDBpwd", "value": value})

    scope.net.sites[WORKSPACE_HOST] = garbled
    with pytest.raises(Unavailable, match="without a value in base64"):
        _read(scope)


def test_a_token_from_a_scope_needs_another_way_in(scope: Deployment) -> None:
    with pytest.raises(ConfigurationError, match="a secret scope is read after signing in") as caught:
        resolved({"DATABRICKS_HOST": scope.workspace.url, "DATABRICKS_TOKEN": _REFERENCE})
    assert str(caught.value).startswith("DATABRICKS_TOKEN (secret scope tp_dpf2cdl, key refDBpwd): ")
    with pytest.raises(ConfigurationError, match="no workspace is configured"):
        resolved({"DATABRICKS_HOST": _REFERENCE})


def test_a_reference_in_this_process_is_never_taken_for_a_token(scope: Deployment) -> None:
    scope.use({"DATABRICKS_HOST": scope.workspace.url, "DATABRICKS_TOKEN": _REFERENCE})
    before = len(scope.net.asked)
    with pytest.raises(ConfigurationError, match="no complete way to sign in"):
        resolved({"DATABRICKS_HOST": scope.workspace.url, "DATABRICKS_TOKEN": _REFERENCE})
    assert [asked.bearer for asked in scope.net.asked[before:] if asked.bearer] == []
