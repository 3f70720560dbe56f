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
from pm_dagster_tests.credentials.internet import PlainSite, Reply, listening
from pm_dagster_tests.credentials.world import DATABASE_HOST, SCOPE, USER, VAULT, World


class Rotating(NamedTuple):
    """Variables that stay as they are, and what changes behind them; ``at_home`` also where the secret is kept."""

    variables: dict[str, str]
    rotate: Callable[[bool], None]


def _password(world: World, keep: Callable[[str], None]) -> Callable[[bool], None]:
    def rotate(at_home: bool) -> None:  # noqa: FBT001 called below only
        world.passwords[USER] = world.secret()
        if at_home:
            keep(world.passwords[USER])

    rotate(True)
    return rotate


def _token(world: World, keep: Callable[[str], None]) -> Callable[[bool], None]:
    def rotate(at_home: bool) -> None:  # noqa: FBT001 called below only
        world.workspace.tokens.clear()
        token = world.token()
        if at_home:
            keep(token)

    rotate(True)
    return rotate


def _file(world: World, name: str) -> tuple[str, Callable[[str], None]]:
    path = Path(world.folder, name)

    def keep(secret: str) -> None:
        path.write_text(f"{secret}\n")

    return path.as_uri(), keep


def _password_in_a_file(world: World) -> Rotating:
    reference, keep = _file(world, "password")
    variables = {**world.place, "PM_POSTGRES_PASSWORD": reference, **world.with_token()}
    return Rotating(variables, _password(world, keep))


def _pgpassword_in_a_vault(world: World) -> Rotating:
    def keep(secret: str) -> None:
        world.vault.put("pg", secret)

    variables = {**world.place, "PGPASSWORD": f"keyvault://{VAULT}/pg", **world.with_token()}
    return Rotating(variables, _password(world, keep))


def _password_in_a_scope(world: World) -> Rotating:
    def keep(secret: str) -> None:
        world.workspace.local.secrets.put(SCOPE, "refDBpwd", secret)

    reference = f"{{{{secrets/{SCOPE}/refDBpwd}}}}"
    return Rotating({**world.place, "PM_POSTGRES_PASSWORD": reference, **world.with_token()}, _password(world, keep))


def _jdbc_url_in_a_vault(world: World) -> Rotating:
    def keep(secret: str) -> None:
        where = f"jdbc:postgresql://{DATABASE_HOST}:{world.front.port}/{world.database}"
        world.vault.put("url", f"{where}?user={USER}&password={secret}&sslmode=require")

    variables = {"PM_POSTGRES_URL": f"https://{VAULT}.vault.azure.net/secrets/url", **world.with_token()}
    return Rotating(variables, _password(world, keep))


def _store_in_a_scope(world: World) -> Rotating:
    def keep(secret: str) -> None:
        world.workspace.local.secrets.put(SCOPE, "refDBpwd", secret)

    variables = {**world.place, "PM_SECRETS": f"databricks-secret://{SCOPE}", **world.with_token()}
    return Rotating(variables, _password(world, keep))


def _token_in_a_file(world: World) -> Rotating:
    reference, keep = _file(world, "token")
    variables = {**world.with_password(), "DATABRICKS_HOST": world.workspace.url, "DATABRICKS_TOKEN": reference}
    return Rotating(variables, _token(world, keep))


def _token_in_a_store(world: World) -> Rotating:
    def keep(secret: str) -> None:
        world.vault.put("databricks-access-token", secret)

    world.vault.put("databricks-instance", world.workspace.host)
    return Rotating({**world.with_password(), "PM_SECRETS": f"keyvault://{VAULT}"}, _token(world, keep))


def _secret_of_a_service_principal(world: World) -> Rotating:
    def rotate(at_home: bool) -> None:  # noqa: FBT001 called below only
        world.entra.client_secret = world.secret()
        if at_home:
            world.vault.put("principal", world.entra.client_secret)

    world.vault.put("principal", world.entra.client_secret)
    variables = {
        "DATABRICKS_HOST": world.workspace.url,
        "ARM_TENANT_ID": entra_site.TENANT,
        "ARM_CLIENT_ID": entra_site.CLIENT_ID,
        "ARM_CLIENT_SECRET": f"@Microsoft.KeyVault(VaultName={VAULT};SecretName=principal)",
    }
    return Rotating({**world.with_password(), **variables}, rotate)


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
def test_the_second_dispatch_uses_the_new_one(world: World, instance: dg.DagsterInstance, place: str) -> None:
    rotating = _PLACES[place](world)
    world.use(world.identity, rotating.variables)
    for number in (1, 2):
        world.add()
        assert world.run_dagster(instance).success
        assert (world.statuses(), world.runs) == ({"SCHEDULED": number}, number)
        rotating.rotate(True)


@pytest.mark.parametrize("place", _PLACES)
def test_the_old_one_would_not_have_done(world: World, instance: dg.DagsterInstance, place: str) -> None:
    rotating = _PLACES[place](world)
    world.use(world.identity, rotating.variables)
    rotating.rotate(False)
    world.add()
    assert not world.run_dagster(instance).success
    assert (world.statuses(), world.runs) == ({"WAITING": 1}, 0)


def test_tokens_of_entra_id_that_end_between_two_dispatches(world: World, instance: dg.DagsterInstance) -> None:
    # azure-identity renews a token five minutes before its end.
    world.entra.lifetime = 60
    with listening(PlainSite, internet=world.net, host="machine") as port:
        world.net.sites["machine"] = world.entra.managed_identity
        world.use(
            world.identity,
            {**world.place, "PM_POSTGRES_AUTH": "entra"},
            {"DATABRICKS_HOST": world.workspace.url, "ARM_USE_MSI": "true"},
            {
                "IDENTITY_ENDPOINT": f"http://127.0.0.1:{port}/msi/token",
                "IDENTITY_HEADER": world.entra.identity_header,
            },
        )
        for number in (1, 2):
            world.add()
            assert world.run_dagster(instance).success
            assert (world.statuses(), world.runs) == ({"SCHEDULED": number}, number)
            world.entra.revoke()


@pytest.mark.parametrize("place", ["password in a file", "PGPASSWORD in a vault", "password in a scope"])
def test_the_next_tick_of_the_sensor_uses_the_new_one(world: World, instance: dg.DagsterInstance, place: str) -> None:
    rotating = _PLACES[place](world)
    world.use(world.identity, rotating.variables)
    world.add()
    repository = build_definitions().get_repository_def()
    for _ in range(2):
        resources = {"control_table": ControlTableResource()}
        with dg.build_sensor_context(instance=instance, resources=resources) as context:
            assert repository.get_sensor_def(names.SENSOR).evaluate_tick(context).run_requests
        rotating.rotate(True)


@pytest.mark.slow
def test_a_vault_that_is_down_for_a_moment_costs_a_retry_and_no_dispatch(
    world: World, instance: dg.DagsterInstance
) -> None:
    rotating = _pgpassword_in_a_vault(world)
    world.use(world.identity, rotating.variables)
    # Three for the run's registering, which fails no run, and three for the op.
    world.vault.trouble = [Reply(503)] * 6
    world.add()
    result = world.run_dagster(instance)
    assert result.success
    retried = [e for e in result.all_events if e.event_type is dg.DagsterEventType.STEP_UP_FOR_RETRY]
    assert [event.step_key for event in retried] == [names.WAITING_JOBS]
