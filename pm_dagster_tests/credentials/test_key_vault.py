"""Secrets from Azure Key Vault, by azure-identity and azure-keyvault-secrets as they are."""

from __future__ import annotations

import socket

import pytest
from azure.core.exceptions import ServiceRequestError
from azure.core.pipeline.policies import RetryPolicy

from pm_dagster.config.credentials import key_vault, resolved
from pm_dagster.errors import ConfigurationError, Unavailable
from pm_dagster.net import retry
from pm_dagster_tests.credentials import entra_site
from pm_dagster_tests.credentials.deployment import VAULT, VAULT_HOST, Cloud
from pm_dagster_tests.credentials.internet import Reply
from pm_dagster_tests.credentials.vault_site import refusal

_NAME = "db-password"
_REFERENCE = f"keyvault://{VAULT}/{_NAME}"


@pytest.fixture
def vault(cloud: Cloud) -> Cloud:
    """A cloud in which this process is an identity that may read the vault."""
    cloud.use(cloud.identity)
    return cloud


def _read(reference: str = _REFERENCE) -> str:
    return resolved({"PM_POSTGRES_PASSWORD": reference}).environment["PM_POSTGRES_PASSWORD"]


@pytest.mark.parametrize(
    "form",
    [
        "keyvault://{vault}/{name}",
        "KeyVault://{vault}/{name}",
        "keyvault://{host}/{name}",
        "https://{host}/secrets/{name}",
        "https://{host}/secrets/{name}/",
        "@Microsoft.KeyVault(SecretUri=https://{host}/secrets/{name})",
        "@Microsoft.KeyVault(SecretUri=https://{host}/secrets/{name}/)",
        "@Microsoft.KeyVault(VaultName={vault};SecretName={name})",
    ],
)
def test_the_latest_version(vault: Cloud, form: str) -> None:
    vault.vault.put(_NAME, vault.secret())
    latest = vault.secret()
    vault.vault.put(_NAME, latest)
    assert _read(form.format(vault=VAULT, host=VAULT_HOST, name=_NAME)) == latest


@pytest.mark.parametrize(
    "form",
    [
        "keyvault://{vault}/{name}/{version}",
        "https://{host}/secrets/{name}/{version}",
        "@Microsoft.KeyVault(SecretUri=https://{host}/secrets/{name}/{version})",
        "@Microsoft.KeyVault(VaultName={vault};SecretName={name};SecretVersion={version})",
    ],
)
def test_a_version_that_is_named(vault: Cloud, form: str) -> None:
    first = vault.secret()
    version = vault.vault.put(_NAME, first)
    vault.vault.put(_NAME, vault.secret())
    assert _read(form.format(vault=VAULT, host=VAULT_HOST, name=_NAME, version=version)) == first


def test_it_is_asked_anew_each_time_and_the_identity_is_not(vault: Cloud) -> None:
    for _ in range(3):
        vault.vault.put(_NAME, value := vault.secret())
        assert _read() == value
    tokens = [asked for asked in vault.net.asked if asked.path.endswith("/oauth2/v2.0/token")]
    assert len(tokens) == 1


def test_where_it_came_from(vault: Cloud) -> None:
    vault.vault.put(_NAME, vault.secret())
    (origin,) = resolved({"PM_POSTGRES_PASSWORD": _REFERENCE}).origins
    assert (origin.variable, origin.source) == ("PM_POSTGRES_PASSWORD", "Key Vault team-vault, secret db-password")


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (refusal(403, "Forbidden", "Caller is not authorized. oid=1", "ForbiddenByRbac"), "Key Vault Secrets User"),
        (refusal(403, "Forbidden", "Operation get is not allowed on a disabled secret.", "SecretDisabled"), "Disabled"),
        (refusal(403, "Forbidden", "Client address is not authorized.", "ForbiddenByFirewall"), "ForbiddenByFirewall"),
        (refusal(401, "Unauthorized", "AKV10032: Invalid issuer."), "does not accept our identity"),
        (refusal(400, "BadParameter", "The request URI contains an invalid name"), "refuses the request"),
    ],
)
def test_a_refusal_says_which_and_why(vault: Cloud, trouble: Reply, words: str) -> None:
    vault.vault.put(_NAME, vault.secret())
    vault.vault.trouble = [trouble]
    with pytest.raises(ConfigurationError) as caught:
        _read()
    assert str(caught.value).startswith("PM_POSTGRES_PASSWORD (Key Vault team-vault, secret db-password): ")
    assert words in str(caught.value)


@pytest.mark.usefixtures("vault")
def test_an_unknown_secret() -> None:
    with pytest.raises(ConfigurationError, match="no such secret or version"):
        _read()


def test_a_vault_that_stumbles_is_asked_again(vault: Cloud) -> None:
    vault.vault.put(_NAME, value := vault.secret())
    vault.vault.trouble = [Reply(503), refusal(429, "Throttled", "Too many requests were received.")]
    assert _read() == value


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (refusal(429, "Throttled", "Too many requests were received."), "throttles us: HTTP 429 Throttled"),
        (refusal(500, "InternalServerError", "Something went wrong."), "does not answer: HTTP 500"),
        (Reply(503, b"<html>"), "does not answer: HTTP 503"),
        (Reply(200, b"<html>", {"Content-Type": "application/json"}), "does not answer"),
    ],
)
def test_a_vault_that_keeps_stumbling(vault: Cloud, trouble: Reply, words: str) -> None:
    vault.vault.trouble = [trouble] * 3
    with pytest.raises(Unavailable, match=words):
        _read()
    assert vault.vault.trouble == []


def test_a_pause_of_an_hour_is_not_slept_through(vault: Cloud) -> None:
    vault.patch.setattr(retry, "BRIEFLY", retry.Retry(longest_pause=0.01))
    vault.vault.trouble = [refusal(429, "Throttled", "Too many", Retry_After="3600")] * 3
    with pytest.raises(Unavailable, match="throttles"):
        _read()


def test_a_vault_out_of_reach(vault: Cloud) -> None:
    del vault.net.sites[VAULT_HOST]
    with pytest.raises(Unavailable, match="the vault does not answer"):
        _read()


def test_a_vault_with_a_foreign_certificate(vault: Cloud) -> None:
    vault.net.present(VAULT_HOST, as_="somewhere-else.example.com")
    with pytest.raises(ConfigurationError, match=f"no TLS with {VAULT_HOST}, nothing was sent: .*REQUESTS_CA_BUNDLE"):
        _read()
    assert not [asked for asked in vault.net.asked if asked.host == VAULT_HOST]


def test_a_directory_with_a_foreign_certificate(vault: Cloud) -> None:
    vault.patch.setattr(RetryPolicy, "BACKOFF_MAX", 0)
    vault.net.present(entra_site.HOST, as_="somewhere-else.example.com")
    with pytest.raises(ConfigurationError, match=f"no TLS with {entra_site.HOST}, nothing was sent"):
        _read()
    assert not [asked for asked in vault.net.asked if asked.host == entra_site.HOST]


def test_a_name_that_nobody_knows() -> None:
    with pytest.raises(socket.gaierror) as nobody:
        socket.getaddrinfo("not an address", None, flags=socket.AI_NUMERICHOST)
    error = ServiceRequestError("no connection", error=nobody.value)
    assert isinstance(key_vault._no_answer(error, VAULT_HOST), ConfigurationError)
    assert isinstance(key_vault._no_answer(ServiceRequestError("no connection"), VAULT_HOST), Unavailable)


def test_no_identity(cloud: Cloud) -> None:
    cloud.use({"AZURE_TOKEN_CREDENTIALS": "dev", "PATH": str(cloud.folder)})
    with pytest.raises(ConfigurationError, match="there is no Azure identity here: set AZURE_TENANT_ID"):
        _read()


def test_an_identity_that_is_refused(cloud: Cloud) -> None:
    cloud.use(cloud.identity, {"AZURE_CLIENT_SECRET": cloud.secret()})
    with pytest.raises(ConfigurationError, match="AADSTS7000215") as caught:
        _read()
    assert str(caught.value).startswith("PM_POSTGRES_PASSWORD (Key Vault team-vault, secret db-password): ")
    cloud.assert_silent(str(caught.value))


def test_a_directory_that_does_not_answer(vault: Cloud) -> None:
    vault.entra.down = True
    vault.patch.setattr(RetryPolicy, "BACKOFF_MAX", 0)
    with pytest.raises(Unavailable, match="Entra ID does not answer"):
        _read()
    del vault.net.sites[entra_site.HOST]
    with pytest.raises(Unavailable, match="Entra ID does not answer"):
        _read()
