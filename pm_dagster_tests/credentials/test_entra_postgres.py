"""A token of Entra ID in the place of the database's password: PM_POSTGRES_AUTH=entra."""

from __future__ import annotations

from contextlib import closing

import pytest
from azure.core.pipeline.policies import RetryPolicy

from pm_dagster.config.settings import settings_from
from pm_dagster.errors import ConfigurationError, Unavailable
from pm_dagster.ledger.connection import connect
from pm_dagster.ledger.connection_strings import jdbc_options
from pm_dagster_tests.credentials import entra_site
from pm_dagster_tests.credentials.deployment import Deployment


def _in_tls(**variables: str) -> bool:
    with closing(connect(settings_from(variables))) as connection:
        return bool(connection.info.ssl_in_use)


def _variables(deployment: Deployment) -> dict[str, str]:
    return {**deployment.place, "PM_POSTGRES_AUTH": "entra"}


def test_a_token_in_the_place_of_a_password(deployment: Deployment) -> None:
    deployment.use(deployment.identity)
    assert _in_tls(**_variables(deployment))
    assert deployment.entra.accepts(deployment.front.shown[0], entra_site.POSTGRES)


def test_a_password_that_is_set_as_well_is_not_shown_to_the_server(deployment: Deployment) -> None:
    deployment.use(deployment.identity)
    assert _in_tls(**{**_variables(deployment), "PM_POSTGRES_PASSWORD": deployment.secret()})
    assert deployment.known[-1] not in deployment.front.shown


def test_each_connection_asks_and_a_token_is_kept_while_it_is_good(deployment: Deployment) -> None:
    deployment.use(deployment.identity)
    for _ in range(3):
        assert _in_tls(**_variables(deployment))
    assert len(set(deployment.front.shown)) == 1


def test_a_token_that_is_about_to_expire_is_renewed(deployment: Deployment) -> None:
    """azure-identity renews a token five minutes before its end."""
    deployment.use(deployment.identity)
    deployment.entra.lifetime = 60
    assert _in_tls(**_variables(deployment))
    assert _in_tls(**_variables(deployment))
    assert len(set(deployment.front.shown)) == 2


def test_without_an_identity(deployment: Deployment) -> None:
    deployment.use({"AZURE_TOKEN_CREDENTIALS": "dev", "PATH": str(deployment.folder)})
    with pytest.raises(
        ConfigurationError, match=r"^PM_POSTGRES_AUTH=entra: .*there is no Azure identity here: set AZURE_TENANT_ID"
    ):
        _in_tls(**_variables(deployment))


def test_without_an_answer(deployment: Deployment) -> None:
    deployment.use(deployment.identity)
    del deployment.net.sites[entra_site.HOST]
    deployment.patch.setattr(RetryPolicy, "BACKOFF_MAX", 0)
    with pytest.raises(Unavailable, match=r"^PM_POSTGRES_AUTH=entra: Entra ID does not answer"):
        _in_tls(**_variables(deployment))


def test_a_token_that_the_server_refuses(deployment: Deployment) -> None:
    deployment.use(deployment.identity)
    deployment.entra.lifetime = -1
    with pytest.raises(ConfigurationError, match="does not accept our credentials") as caught:
        _in_tls(**_variables(deployment))
    deployment.assert_silent(str(caught.value))


def test_the_scope_is_that_of_the_cloud(deployment: Deployment) -> None:
    deployment.use(deployment.identity)
    host = "flow.postgres.database.usgovcloudapi.net"
    with pytest.raises(ConfigurationError, match="does not accept our credentials"):
        _in_tls(**{**_variables(deployment), "PM_POSTGRES_HOST": host})
    forms = [asked.form for asked in deployment.net.asked if asked.path.endswith("/token")]
    assert forms[-1]["scope"] == "https://ossrdbms-aad.database.usgovcloudapi.net/.default"


def test_spark_gets_a_token_too(deployment: Deployment) -> None:
    deployment.use(deployment.identity)
    options = jdbc_options(settings_from(_variables(deployment)))
    assert deployment.entra.accepts(options["password"], entra_site.POSTGRES)
    assert options["password"] not in options["url"]
