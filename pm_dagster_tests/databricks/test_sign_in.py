"""Which way to sign in the variables describe, and what contradicts what."""

from __future__ import annotations

import pytest

from pm_dagster.config.settings import Settings
from pm_dagster.databricks.sign_in import is_configured, signed_in, way_to_sign_in
from pm_dagster.errors import ConfigurationError

_HOST = {"DATABRICKS_HOST": "https://adb-1.2.azuredatabricks.net"}
_PAT = {"DATABRICKS_TOKEN": "made-up-token"}
_OAUTH = {"DATABRICKS_CLIENT_ID": "id", "DATABRICKS_CLIENT_SECRET": "made-up-secret"}
_AZURE = {"ARM_CLIENT_ID": "id", "ARM_CLIENT_SECRET": "made-up-secret", "ARM_TENANT_ID": "tenant"}
_MSI = {"ARM_USE_MSI": "true"}


@pytest.mark.parametrize(
    ("variables", "way"),
    [
        ({}, None),
        (_PAT, "pat"),
        ({"DATABRICKS_USERNAME": "u", "DATABRICKS_PASSWORD": "p"}, "basic"),
        (_OAUTH, "oauth-m2m"),
        (_AZURE, "azure-client-secret"),
        ({**_AZURE, "ARM_TENANT_ID": ""}, "azure-client-secret"),
        (_MSI, "azure-msi"),
        ({**_MSI, "ARM_CLIENT_ID": "id"}, "azure-msi"),
        ({"ARM_USE_MSI": "false", "ARM_TENANT_ID": "t"}, "azure-cli"),
        ({"ARM_TENANT_ID": "t"}, "azure-cli"),
        ({"ARM_CLIENT_ID": "id", "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "t"}, None),
        ({"DATABRICKS_CLIENT_ID": "id"}, None),
        ({"DATABRICKS_AUTH_TYPE": "databricks-cli"}, "databricks-cli"),
        ({**_PAT, **_AZURE, "DATABRICKS_AUTH_TYPE": "pat"}, "pat"),
    ],
)
def test_ways(variables: dict[str, str], way: str | None) -> None:
    assert way_to_sign_in(variables) == way


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (_PAT | _OAUTH, "set DATABRICKS_AUTH_TYPE to one of pat, oauth-m2m$"),
        (_PAT | _AZURE, "set DATABRICKS_AUTH_TYPE to one of pat, azure-client-secret, azure-msi, azure-cli$"),
        (_PAT | {"ARM_TENANT_ID": "t"}, r"\(DATABRICKS_TOKEN, ARM_TENANT_ID\); set DATABRICKS_AUTH_TYPE"),
        (_MSI | _AZURE, "set DATABRICKS_AUTH_TYPE to one of azure-client-secret, azure-msi$"),
        ({"ARM_CLIENT_SECRET": "made-up-secret"}, "without ARM_CLIENT_ID"),
        ({"DATABRICKS_CLIENT_SECRET": "made-up-secret"}, "without DATABRICKS_CLIENT_ID"),
    ],
)
def test_contradictions_name_the_variables_and_the_way_out(variables: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as caught:
        way_to_sign_in(variables)
    assert "made-up" not in str(caught.value)


@pytest.mark.parametrize(
    ("variables", "configured"),
    [
        ({}, False),
        (_PAT, False),
        ({"DATABRICKS_AUTH_TYPE": "pat"}, False),
        ({"DATABRICKS_AUTH_TYPE": "pat", **_AZURE}, False),
        ({"DATABRICKS_AUTH_TYPE": "azure-cli"}, True),
        ({"DATABRICKS_CONFIG_PROFILE": "p"}, True),
        (_OAUTH, True),
        (_MSI, True),
    ],
)
def test_something_else_than_a_token_is_configured(variables: dict[str, str], *, configured: bool) -> None:
    assert is_configured(variables) is configured


def test_nothing_at_all_says_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(
        ConfigurationError, match=r"no complete way .* it takes DATABRICKS_TOKEN \(pat\); or .*az login"
    ):
        signed_in({"DATABRICKS_HOST": "http://127.0.0.1:1"}, Settings())


@pytest.mark.parametrize("way", ["pat", "oauth-m2m", "azure-client-secret", "no-such-way"])
def test_a_way_that_was_chosen_but_not_set_up(way: str) -> None:
    with pytest.raises(ConfigurationError, match=f"signing in by {way} is not possible|cannot be used"):
        signed_in({"DATABRICKS_HOST": "http://127.0.0.1:1", "DATABRICKS_AUTH_TYPE": way}, Settings())


def test_the_given_variables_count_and_not_those_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """There, a variable may hold a reference to a secret."""
    for name, value in {**_AZURE, "DATABRICKS_TOKEN": "keyvault://team/name", "DATABRICKS_HOST": "https://x"}.items():
        monkeypatch.setenv(name, value)
    config = signed_in(_HOST | _PAT, Settings())
    assert (config.host, config.auth_type) == (_HOST["DATABRICKS_HOST"], "pat")
    assert config.authenticate() == {"Authorization": "Bearer made-up-token"}
    assert not config.azure_client_secret


def test_what_the_process_says_of_another_workspace_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = {
        "DATABRICKS_TOKEN": "their-token",
        "DATABRICKS_RATE_LIMIT": "7",
        "DATABRICKS_DEBUG_HEADERS": "true",
        "DATABRICKS_CLUSTER_ID": "theirs",
        "ARM_CLIENT_SECRET": "their-secret",
        "ARM_CLIENT_ID": "their-id",
    }
    for name, value in theirs.items():
        monkeypatch.setenv(name, value)
    config = signed_in(_HOST | {"DATABRICKS_TOKEN": "our-token"}, Settings())
    assert config.authenticate() == {"Authorization": "Bearer our-token"}
    assert not (config.rate_limit)
    assert not (config.debug_headers)
    assert not (config.cluster_id)
    assert not config.azure_client_secret
