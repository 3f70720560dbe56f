"""What is a reference, what is an ordinary value, and what only looks like a reference."""

from __future__ import annotations

from pathlib import Path

import pytest

from pm_dagster.config.credentials.references import (
    FileSecret,
    NotReadableError,
    Scope,
    ScopeSecret,
    Vault,
    VaultSecret,
    reference_in,
    store_in,
)

_VAULT = Vault("team.vault.azure.net")
_SECRET = VaultSecret(_VAULT, "db-pw")
_SCOPE_SECRET = ScopeSecret(Scope("tp_dpf2cdl"), "refDBpwd")


@pytest.mark.parametrize(
    ("value", "reference"),
    [
        ("file:///run/secrets/pw", FileSecret(Path("/run/secrets/pw"))),
        ("file:/run/secrets/pw", FileSecret(Path("/run/secrets/pw"))),
        ("file://localhost/run/pw", FileSecret(Path("/run/pw"))),
        ("file:///a%20b/%25", FileSecret(Path("/a b/%"))),
        (" file:///run/pw\n", FileSecret(Path("/run/pw"))),
        ("keyvault://team/db-pw", _SECRET),
        ("keyvault://TEAM/db-pw/", _SECRET),
        ("keyvault://team.vault.azure.net/db-pw", _SECRET),
        ("keyvault://team/db-pw/0a1b", VaultSecret(_VAULT, "db-pw", "0a1b")),
        ("keyvault://team.vault.azure.cn/db-pw", VaultSecret(Vault("team.vault.azure.cn"), "db-pw")),
        (
            "https://team.vault.usgovcloudapi.net/secrets/db-pw",
            VaultSecret(Vault("team.vault.usgovcloudapi.net"), "db-pw"),
        ),
        ("@microsoft.keyvault( SecretName=db-pw ; VaultName=team )", _SECRET),
        ("databricks-secret://tp_dpf2cdl/refDBpwd", _SCOPE_SECRET),
        ("{{secrets/tp_dpf2cdl/refDBpwd}}", _SCOPE_SECRET),
        ("{{ secrets/tp_dpf2cdl/refDBpwd }}", _SCOPE_SECRET),
    ],
)
def test_references(value: str, reference: object) -> None:
    assert reference_in(value) == reference


@pytest.mark.parametrize(
    "value",
    [
        "https://adb-1.2.azuredatabricks.net",
        "http://127.0.0.1:8080",
        "adb-1.2.azuredatabricks.net",
        "postgresql://u:p@h/d",
        "postgres://u:p@h/d",
        "postgresql+psycopg2://u:p@h/d",
        "jdbc:postgresql://h:5432/d?user=u",
        "host=h password='file:///not/this'",
        "dapi0123456789abcdef",
        "p@ss{{word}}",
        "{{word",
        "file",
        "file:name",
        "a/b:c//d",
        "5432",
        "/var/run/postgresql",
        "@Microsoft",
        "keyvault",
    ],
)
def test_ordinary_values(value: str) -> None:
    assert reference_in(value) is None


@pytest.mark.parametrize(
    "value",
    [
        "vault://team/db-pw",
        "aws-secretsmanager://hunter2",
        "hunter2://",
        "file://server/share/pw",
        "file://~/pw",
        "keyvault://",
        "keyvault://team",
        "keyvault://team/",
        "keyvault:///db-pw",
        "keyvault://team/db-pw/1/2",
        "keyvault://te/db-pw",
        "keyvault://team.example.com/db-pw",
        "keyvault://team.example.com#.vault.azure.net/db-pw",
        "keyvault://hunter2@team/db-pw",
        "keyvault://team/../db-pw",
        "https://team.vault.azure.net/keys/db-pw",
        "https://team.vault.azure.net/secrets/db-pw?x=hunter2",
        "@Microsoft.KeyVault(SecretUri=http://team.vault.azure.net/secrets/db-pw)",
        "@Microsoft.KeyVault(SecretUri=https://hunter2.example.com/secrets/db-pw)",
        "@Microsoft.KeyVault(VaultName=team)",
        "@Microsoft.KeyVault",
        "databricks-secret://scope",
        "databricks-secret:///key",
        "databricks-secret://scope/key/more",
        "{{secrets/scope}}",
        "{{secrets/scope/key}} and more",
        "file:///hunter2%00",
        "file://[hunter2/x",
        "https://[.vault.azure.net/secrets/hunter2",
        "@Microsoft.KeyVault(SecretUri=https://[hunter2/secrets/x)",
    ],
)
def test_what_only_looks_like_one_is_refused_without_its_value(value: str) -> None:
    with pytest.raises(NotReadableError) as caught:
        reference_in(value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "store"),
    [
        ("keyvault://team", _VAULT),
        ("keyvault://team/", _VAULT),
        ("https://team.vault.azure.net/", _VAULT),
        ("databricks-secret://tp_dpf2cdl", Scope("tp_dpf2cdl")),
    ],
)
def test_stores(value: str, store: object) -> None:
    assert store_in(value) == store


@pytest.mark.parametrize("value", ["tp_dpf2cdl", "file:///run/secrets", "keyvault://", "https://example.com", "x://y"])
def test_no_stores(value: str) -> None:
    with pytest.raises(NotReadableError):
        store_in(value)
