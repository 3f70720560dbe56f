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
from pm_dagster_tests.credentials.world import World


def _in_tls(**variables: str) -> bool:
    with closing(connect(settings_from(variables))) as connection:
        return bool(connection.info.ssl_in_use)


def _variables(world: World) -> dict[str, str]:
    return {**world.place, "PM_POSTGRES_AUTH": "entra"}


def test_a_token_in_the_place_of_a_password(world: World) -> None:
    world.use(world.identity)
    assert _in_tls(**_variables(world))
    assert world.entra.accepts(world.front.shown[0], entra_site.POSTGRES)


def test_a_password_that_is_set_as_well_is_not_shown_to_the_server(world: World) -> None:
    world.use(world.identity)
    assert _in_tls(**{**_variables(world), "PM_POSTGRES_PASSWORD": world.secret()})
    assert world.known[-1] not in world.front.shown


def test_each_connection_asks_and_a_token_is_kept_while_it_is_good(world: World) -> None:
    world.use(world.identity)
    for _ in range(3):
        assert _in_tls(**_variables(world))
    assert len(set(world.front.shown)) == 1


def test_a_token_that_is_about_to_expire_is_renewed(world: World) -> None:
    """azure-identity renews a token five minutes before its end."""
    world.use(world.identity)
    world.entra.lifetime = 60
    assert _in_tls(**_variables(world))
    assert _in_tls(**_variables(world))
    assert len(set(world.front.shown)) == 2


def test_without_an_identity(world: World) -> None:
    world.use({"AZURE_TOKEN_CREDENTIALS": "dev", "PATH": str(world.folder)})
    with pytest.raises(
        ConfigurationError, match=r"^PM_POSTGRES_AUTH=entra: .*there is no Azure identity here: set AZURE_TENANT_ID"
    ):
        _in_tls(**_variables(world))


def test_without_an_answer(world: World) -> None:
    world.use(world.identity)
    del world.net.sites[entra_site.HOST]
    world.patch.setattr(RetryPolicy, "BACKOFF_MAX", 0)
    with pytest.raises(Unavailable, match=r"^PM_POSTGRES_AUTH=entra: Entra ID does not answer"):
        _in_tls(**_variables(world))


def test_a_token_that_the_server_refuses(world: World) -> None:
    world.use(world.identity)
    world.entra.lifetime = -1
    with pytest.raises(ConfigurationError, match="does not accept our credentials") as caught:
        _in_tls(**_variables(world))
    world.assert_silent(str(caught.value))


def test_the_scope_is_that_of_the_cloud(world: World) -> None:
    world.use(world.identity)
    host = "flow.postgres.database.usgovcloudapi.net"
    with pytest.raises(ConfigurationError, match="does not accept our credentials"):
        _in_tls(**{**_variables(world), "PM_POSTGRES_HOST": host})
    forms = [asked.form for asked in world.net.asked if asked.path.endswith("/token")]
    assert forms[-1]["scope"] == "https://ossrdbms-aad.database.usgovcloudapi.net/.default"


def test_spark_gets_a_token_too(world: World) -> None:
    world.use(world.identity)
    options = jdbc_options(settings_from(_variables(world)))
    assert world.entra.accepts(options["password"], entra_site.POSTGRES)
    assert options["password"] not in options["url"]
