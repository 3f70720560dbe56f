"""The database as an Azure Database for PostgreSQL: TLS, and passwords behind it."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from pm_dagster.config.settings import settings_from
from pm_dagster.errors import ConfigurationError, ControlPlaneUnavailable
from pm_dagster.ledger.connection import connect
from pm_dagster_tests.credentials.deployment import DATABASE_HOST, USER, Deployment


def _in_tls(**variables: str) -> bool:
    """Connect; true when the connection is encrypted."""
    with closing(connect(settings_from(variables))) as connection:
        return bool(connection.info.ssl_in_use)


def test_a_host_on_azure_is_spoken_to_in_tls(deployment: Deployment) -> None:
    deployment.use()
    assert _in_tls(**deployment.with_password())


def test_other_hosts_are_spoken_to_as_libpq_would(deployment: Deployment) -> None:
    with closing(connect(settings_from({"PM_POSTGRES_URL": deployment.database_url}))) as connection:
        assert not connection.info.ssl_in_use


@pytest.mark.parametrize("variables", [{"PM_POSTGRES_SSLMODE": "disable"}, {"PGSSLMODE": "disable"}])
def test_who_turns_tls_off_meets_the_servers_refusal(deployment: Deployment, variables: dict[str, str]) -> None:
    deployment.use()
    with pytest.raises(ConfigurationError, match=r"does not accept our credentials.*no encryption"):
        _in_tls(**deployment.with_password(), **variables)


@pytest.mark.parametrize("mode", ["PM_POSTGRES_SSLMODE", "PGSSLMODE", "url", "jdbc"])
def test_the_server_is_verified_on_demand(deployment: Deployment, mode: str) -> None:
    """By libpq's own sslrootcert, here as PGSSLROOTCERT."""
    deployment.use({"PGSSLROOTCERT": str(deployment.net.authority)})
    variables = deployment.with_password()
    if mode == "url":
        variables["PM_POSTGRES_URL"] = f"postgresql://{DATABASE_HOST}/x?sslmode=verify-full"
    elif mode == "jdbc":
        variables["PM_POSTGRES_URL"] = f"jdbc:postgresql://{DATABASE_HOST}/x?ssl=true"
    else:
        variables[mode] = "verify-full"
    assert _in_tls(**variables)


def test_a_server_with_a_foreign_certificate_is_refused(deployment: Deployment, tmp_path: Path) -> None:
    deployment.use({"PGSSLROOTCERT": str(deployment.net.authority)})
    variables = {**deployment.with_password(), "PM_POSTGRES_SSLMODE": "verify-full"}
    with pytest.raises(ConfigurationError, match=r"TLS.*does not match host name"):
        _in_tls(**{**variables, "PM_POSTGRES_HOST": "other.postgres.database.azure.com"})
    deployment.use({"PGSSLROOTCERT": str(tmp_path / "nothing.pem")})
    with pytest.raises(ConfigurationError, match=r"TLS.*root certificate file"):
        _in_tls(**variables)
    assert deployment.front.shown == []


def test_the_url_of_a_jdbc_driver(deployment: Deployment) -> None:
    deployment.use()
    deployment.passwords[USER] = password = deployment.secret()
    where = f"jdbc:postgresql://{DATABASE_HOST}:{deployment.front.port}/{deployment.database}"
    assert _in_tls(PM_POSTGRES_URL=f"{where}?user={USER}&password={password}&sslmode=require")
    assert _in_tls(PM_POSTGRES_URL=where, PM_POSTGRES_USER=USER, PM_POSTGRES_PASSWORD=password)


def test_libpqs_own_variables(deployment: Deployment) -> None:
    deployment.use()
    deployment.passwords[USER] = deployment.secret()
    assert _in_tls(
        PGHOST=DATABASE_HOST,
        PGPORT=str(deployment.front.port),
        PGDATABASE=deployment.database,
        PGUSER=USER,
        PGPASSWORD=deployment.passwords[USER],
    )


def test_what_stands_in_this_process_does_not_win(deployment: Deployment) -> None:
    """A reference stands there, and libpq would take it for the password."""
    deployment.use({"PGPASSWORD": "keyvault://team/name"})
    deployment.passwords[USER] = deployment.secret()
    assert _in_tls(**deployment.place, PGPASSWORD=deployment.passwords[USER])
    assert deployment.front.shown == [deployment.passwords[USER]]


def test_a_wrong_password(deployment: Deployment) -> None:
    deployment.use()
    variables = {**deployment.with_password(), "PM_POSTGRES_PASSWORD": deployment.secret()}
    with pytest.raises(ConfigurationError, match="does not accept our credentials") as caught:
        _in_tls(**variables)
    deployment.assert_silent(str(caught.value))


def test_an_unknown_database_is_a_matter_of_configuration(deployment: Deployment) -> None:
    deployment.use()
    with pytest.raises(ConfigurationError, match="nowhere"):
        _in_tls(**{**deployment.with_password(), "PM_POSTGRES_DATABASE": "nowhere"})


def test_a_server_that_does_not_answer(deployment: Deployment) -> None:
    deployment.use()
    with pytest.raises(ControlPlaneUnavailable, match="the database does not answer") as caught:
        _in_tls(**{**deployment.with_password(), "PM_POSTGRES_PORT": "1"})
    deployment.assert_silent(str(caught.value))
