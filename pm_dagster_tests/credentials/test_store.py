"""A whole store by its usual names: what is taken from it, and what is left alone."""

from __future__ import annotations

import pytest

from pm_dagster.config.credentials import resolved
from pm_dagster.errors import ConfigurationError, Unavailable
from pm_dagster_tests.credentials.deployment import SCOPE, VAULT, VAULT_HOST, Cloud, Deployment
from pm_dagster_tests.credentials.vault_site import refusal

_NAMES = {
    "databricks-instance": "DATABRICKS_HOST",
    "databricks-access-token": "DATABRICKS_TOKEN",
    "refDBjdbcURL": "PM_POSTGRES_URL",
    "refDBhostname": "PM_POSTGRES_HOST",
    "refDBname": "PM_POSTGRES_DATABASE",
    "refDBuser": "PM_POSTGRES_USER",
    "refDBpwd": "PM_POSTGRES_PASSWORD",
    "database-postgres-schema": "PM_SCHEMA",
}
_VAULT = {"PM_SECRETS": f"keyvault://{VAULT}"}
_SCOPE = {"PM_SECRETS": f"databricks-secret://{SCOPE}"}


@pytest.fixture
def vault(cloud: Cloud) -> Cloud:
    """A cloud whose vault has everything, each value its own name, and in which we may read it."""
    cloud.use(cloud.identity)
    for name in _NAMES:
        cloud.vault.put(name, f"value-of-{name}")
    return cloud


@pytest.fixture
def scope(deployment: Deployment) -> Deployment:
    """A deployment whose workspace has a scope with everything."""
    deployment.use()
    for name in _NAMES:
        deployment.workspace.local.secrets.put(SCOPE, name, f"value-of-{name}")
    return deployment


def _taken(environment: dict[str, str]) -> set[str]:
    """The names in the store that something was taken from."""
    found = resolved(environment).environment
    return {name for name, variable in _NAMES.items() if found.get(variable) == f"value-of-{name}"}


@pytest.mark.usefixtures("vault")
def test_a_vault_gives_everything() -> None:
    assert _taken(_VAULT) == set(_NAMES)
    origins = {origin.variable: origin.source for origin in resolved(_VAULT).origins}
    assert set(origins) == set(_NAMES.values())
    assert origins["PM_POSTGRES_USER"] == "PM_SECRETS: Key Vault team-vault, secret refDBuser"


def test_a_scope_gives_everything_but_the_way_into_it(scope: Deployment) -> None:
    given = {**_SCOPE, **scope.with_token()}
    assert _taken(given) == set(_NAMES) - {"databricks-instance", "databricks-access-token"}
    origins = {origin.variable: origin.source for origin in resolved(given).origins}
    assert origins["DATABRICKS_TOKEN"] == "environment variable"
    assert origins["PM_SCHEMA"] == "PM_SECRETS: secret scope tp_dpf2cdl, key database-postgres-schema"


def test_what_the_store_lacks_is_left_unset(deployment: Deployment) -> None:
    deployment.use(deployment.identity)
    deployment.vault.put("refDBpwd", "word")
    deployment.workspace.local.secrets.put(SCOPE, "refDBuser", "somebody")
    assert dict(resolved(_VAULT).environment) == {**_VAULT, "PM_POSTGRES_PASSWORD": "word"}
    given = {**_SCOPE, **deployment.with_token()}
    assert dict(resolved(given).environment) == {**given, "PM_POSTGRES_USER": "somebody"}


@pytest.mark.parametrize(
    ("given", "left_alone"),
    [
        ({"PM_SCHEMA": "own"}, {"database-postgres-schema"}),
        ({"PM_POSTGRES_PASSWORD": "own"}, {"refDBpwd"}),
        ({"PGPASSWORD": "own"}, {"refDBpwd"}),
        ({"PM_POSTGRES_AUTH": "entra"}, {"refDBpwd"}),
        ({"PM_POSTGRES_HOST": "own"}, {"refDBjdbcURL", "refDBhostname"}),
        ({"PGHOST": "own", "PGUSER": "own"}, {"refDBjdbcURL", "refDBhostname", "refDBuser"}),
        ({"PGSERVICE": "own"}, {"refDBjdbcURL", "refDBhostname", "refDBname", "refDBuser", "refDBpwd"}),
        ({"PM_POSTGRES_URL": "postgresql://h/d"}, {"refDBjdbcURL", "refDBhostname", "refDBname"}),
        (
            {"PM_POSTGRES_URL": "jdbc:postgresql://h/d?user=u&password=p"},
            {"refDBjdbcURL", "refDBhostname", "refDBname", "refDBuser", "refDBpwd"},
        ),
        ({"DATABRICKS_TOKEN": "own"}, {"databricks-access-token"}),
        ({"DATABRICKS_HOST": "https://own.example.com"}, {"databricks-instance"}),
        ({"DATABRICKS_CLIENT_ID": "own", "DATABRICKS_CLIENT_SECRET": "own"}, {"databricks-access-token"}),
        ({"ARM_USE_MSI": "true"}, {"databricks-access-token"}),
        ({"DATABRICKS_AUTH_TYPE": "azure-cli"}, {"databricks-access-token"}),
        ({"DATABRICKS_AUTH_TYPE": "pat", "ARM_TENANT_ID": "own"}, set()),
        ({"DATABRICKS_CONFIG_PROFILE": "own"}, {"databricks-access-token", "databricks-instance"}),
    ],
)
@pytest.mark.usefixtures("vault")
def test_what_is_set_is_completed_and_not_overridden(given: dict[str, str], left_alone: set[str]) -> None:
    assert _taken({**_VAULT, **given}) == set(_NAMES) - left_alone


def test_a_store_that_refuses_is_asked_once(vault: Cloud) -> None:
    vault.vault.trouble = [refusal(403, "Forbidden", "Caller is not authorized.", "ForbiddenByRbac")] * 9
    with pytest.raises(ConfigurationError, match=r"^PM_SECRETS \(Key Vault team-vault\): for .*Key Vault Secrets User"):
        resolved(_VAULT)
    assert len(vault.vault.trouble) == 8


def test_a_store_out_of_reach(vault: Cloud) -> None:
    del vault.net.sites[VAULT_HOST]
    with pytest.raises(Unavailable, match=r"^PM_SECRETS \(Key Vault team-vault\): "):
        resolved(_VAULT)


def test_a_scope_that_does_not_exist(deployment: Deployment) -> None:
    deployment.use()
    with pytest.raises(ConfigurationError, match=r"^PM_SECRETS \(secret scope tp_dpf2cdl\): .*no such scope"):
        resolved({**_SCOPE, **deployment.with_token()})


@pytest.mark.parametrize("value", ["tp_dpf2cdl", "file:///run/secrets"])
def test_something_else_than_a_store(value: str) -> None:
    with pytest.raises(ConfigurationError, match="PM_SECRETS cannot be used: a store is keyvault://VAULT or"):
        resolved({"PM_SECRETS": value})
