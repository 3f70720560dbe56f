"""A credential that changes between two dispatches needs no restart: one process, the old one refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import dagster as dg
import pytest

from pm_dagster.definitions import build_definitions
from pm_dagster.orchestration import names
from pm_dagster.orchestration.resources import ControlTableResource
from pm_dagster_tests.credentials import entra_site
from pm_dagster_tests.credentials.deployment import DATABASE_HOST, SCOPE, USER, VAULT, Deployment
from pm_dagster_tests.credentials.internet import PlainSite, Reply, listening


class Rotating(NamedTuple):
    """Variables that stay as they are, and what changes behind them; ``at_home`` also where the secret is kept."""

    variables: dict[str, str]
    rotate: Callable[[bool], None]


def _password(deployment: Deployment, keep: Callable[[str], None]) -> Callable[[bool], None]:
    def rotate(at_home: bool) -> None:  # noqa: FBT001 called below only
        deployment.passwords[USER] = deployment.secret()
        if at_home:
            keep(deployment.passwords[USER])

    rotate(True)
    return rotate


def _token(deployment: Deployment, keep: Callable[[str], None]) -> Callable[[bool], None]:
    def rotate(at_home: bool) -> None:  # noqa: FBT001 called below only
        deployment.workspace.tokens.clear()
        token = deployment.token()
        if at_home:
            keep(token)

    rotate(True)
    return rotate


def _file(deployment: Deployment, name: str) -> tuple[str, Callable[[str], None]]:
    path = Path(deployment.folder, name)

    def keep(secret: str) -> None:
        path.write_text(f"{secret}\n")

    return path.as_uri(), keep


def _password_in_a_file(deployment: Deployment) -> Rotating:
    reference, keep = _file(deployment, "password")
    variables = {**deployment.place, "PM_POSTGRES_PASSWORD": reference, **deployment.with_token()}
    return Rotating(variables, _password(deployment, keep))


def _pgpassword_in_a_vault(deployment: Deployment) -> Rotating:
    def keep(secret: str) -> None:
        deployment.vault.put("pg", secret)

    variables = {**deployment.place, "PGPASSWORD": f"keyvault://{VAULT}/pg", **deployment.with_token()}
    return Rotating(variables, _password(deployment, keep))


def _password_in_a_scope(deployment: Deployment) -> Rotating:
    def keep(secret: str) -> None:
        deployment.workspace.local.secrets.put(SCOPE, "refDBpwd", secret)

    reference = f"{{{{secrets/{SCOPE}/refDBpwd}}}}"
    return Rotating(
        {**deployment.place, "PM_POSTGRES_PASSWORD": reference, **deployment.with_token()}, _password(deployment, keep)
    )


def _jdbc_url_in_a_vault(deployment: Deployment) -> Rotating:
    def keep(secret: str) -> None:
        where = f"jdbc:postgresql://{DATABASE_HOST}:{deployment.front.port}/{deployment.database}"
        deployment.vault.put("url", f"{where}?user={USER}&password={secret}&sslmode=require")

    variables = {"PM_POSTGRES_URL": f"https://{VAULT}.vault.azure.net/secrets/url", **deployment.with_token()}
    return Rotating(variables, _password(deployment, keep))


def _store_in_a_scope(deployment: Deployment) -> Rotating:
    def keep(secret: str) -> None:
        deployment.workspace.local.secrets.put(SCOPE, "refDBpwd", secret)

    variables = {**deployment.place, "PM_SECRETS": f"databricks-secret://{SCOPE}", **deployment.with_token()}
    return Rotating(variables, _password(deployment, keep))


def _token_in_a_file(deployment: Deployment) -> Rotating:
    reference, keep = _file(deployment, "token")
    variables = {
        **deployment.with_password(),
        "DATABRICKS_HOST": deployment.workspace.url,
        "DATABRICKS_TOKEN": reference,
    }
    return Rotating(variables, _token(deployment, keep))


def _token_in_a_store(deployment: Deployment) -> Rotating:
    def keep(secret: str) -> None:
        deployment.vault.put("databricks-access-token", secret)

    deployment.vault.put("databricks-instance", deployment.workspace.host)
    return Rotating({**deployment.with_password(), "PM_SECRETS": f"keyvault://{VAULT}"}, _token(deployment, keep))


def _secret_of_a_service_principal(deployment: Deployment) -> Rotating:
    def rotate(at_home: bool) -> None:  # noqa: FBT001 called below only
        deployment.entra.client_secret = deployment.secret()
        if at_home:
            deployment.vault.put("principal", deployment.entra.client_secret)

    deployment.vault.put("principal", deployment.entra.client_secret)
    variables = {
        "DATABRICKS_HOST": deployment.workspace.url,
        "ARM_TENANT_ID": entra_site.TENANT,
        "ARM_CLIENT_ID": entra_site.CLIENT_ID,
        "ARM_CLIENT_SECRET": f"@Microsoft.KeyVault(VaultName={VAULT};SecretName=principal)",
    }
    return Rotating({**deployment.with_password(), **variables}, rotate)


_PLACES = {
    "password in a file": _password_in_a_file,
    "PGPASSWORD in a vault": _pgpassword_in_a_vault,
    "password in a scope": _password_in_a_scope,
    "JDBC URL in a vault": _jdbc_url_in_a_vault,
    "store in a scope": _store_in_a_scope,
    "token in a file": _token_in_a_file,
    "token in a store": _token_in_a_store,
    "secret of a service principal": _secret_of_a_service_principal,
}


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.local_temp() as made:
        yield made


@pytest.mark.parametrize("place", _PLACES)
def test_the_second_dispatch_uses_the_new_one(deployment: Deployment, instance: dg.DagsterInstance, place: str) -> None:
    rotating = _PLACES[place](deployment)
    deployment.use(deployment.identity, rotating.variables)
    for number in (1, 2):
        deployment.add()
        assert deployment.run_dagster(instance).success
        assert (deployment.statuses(), deployment.runs) == ({"SCHEDULED": number}, number)
        rotating.rotate(True)


@pytest.mark.parametrize("place", _PLACES)
def test_the_old_one_would_not_have_done(deployment: Deployment, instance: dg.DagsterInstance, place: str) -> None:
    rotating = _PLACES[place](deployment)
    deployment.use(deployment.identity, rotating.variables)
    rotating.rotate(False)
    deployment.add()
    assert not deployment.run_dagster(instance).success
    assert (deployment.statuses(), deployment.runs) == ({"WAITING": 1}, 0)


def test_tokens_of_entra_id_that_end_between_two_dispatches(
    deployment: Deployment, instance: dg.DagsterInstance
) -> None:
    # azure-identity renews a token five minutes before its end.
    deployment.entra.lifetime = 60
    with listening(PlainSite, internet=deployment.net, host="machine") as port:
        deployment.net.sites["machine"] = deployment.entra.managed_identity
        deployment.use(
            deployment.identity,
            {**deployment.place, "PM_POSTGRES_AUTH": "entra"},
            {"DATABRICKS_HOST": deployment.workspace.url, "ARM_USE_MSI": "true"},
            {
                "IDENTITY_ENDPOINT": f"http://127.0.0.1:{port}/msi/token",
                "IDENTITY_HEADER": deployment.entra.identity_header,
            },
        )
        for number in (1, 2):
            deployment.add()
            assert deployment.run_dagster(instance).success
            assert (deployment.statuses(), deployment.runs) == ({"SCHEDULED": number}, number)
            deployment.entra.revoke()


@pytest.mark.parametrize("place", ["password in a file", "PGPASSWORD in a vault", "password in a scope"])
def test_the_next_tick_of_the_sensor_uses_the_new_one(
    deployment: Deployment, instance: dg.DagsterInstance, place: str
) -> None:
    rotating = _PLACES[place](deployment)
    deployment.use(deployment.identity, rotating.variables)
    deployment.add()
    repository = build_definitions().get_repository_def()
    for _ in range(2):
        resources = {"control_table": ControlTableResource()}
        with dg.build_sensor_context(instance=instance, resources=resources) as context:
            assert repository.get_sensor_def(names.SENSOR).evaluate_tick(context).run_requests
        rotating.rotate(True)


@pytest.mark.slow
def test_a_vault_that_is_down_for_a_moment_costs_a_retry_and_no_dispatch(
    deployment: Deployment, instance: dg.DagsterInstance
) -> None:
    rotating = _pgpassword_in_a_vault(deployment)
    deployment.use(deployment.identity, rotating.variables)
    # Three for the run's registering, which fails no run, and three for the op.
    deployment.vault.trouble = [Reply(503)] * 6
    deployment.add()
    result = deployment.run_dagster(instance)
    assert result.success
    retried = [e for e in result.all_events if e.event_type is dg.DagsterEventType.STEP_UP_FOR_RETRY]
    assert [event.step_key for event in retried] == [names.WAITING_JOBS]
