"""`pm doctor` says where each credential came from, and never what it is."""

from __future__ import annotations

import json
from typing import Any

from pm_dagster_tests.credentials import entra_site
from pm_dagster_tests.credentials.deployment import SCOPE, USER, VAULT, Deployment
from pm_dagster_tests.credentials.vault_site import refusal


def _doctor(deployment: Deployment, code: int, **variables: str) -> dict[str, Any]:
    """By check; what a person reads says the same and is as silent."""
    read, shown = (deployment.pm("doctor", *options, **variables) for options in (["--json"], []))
    for done in (read, shown):
        assert done.returncode == code, done.stdout + done.stderr
        assert done.stderr == ""
        deployment.assert_silent(done.stdout)
    checks: dict[str, Any] = {check["check"]: check for check in json.loads(read.stdout)["checks"]}
    flat = " ".join(shown.stdout.split())
    assert all(name in flat for name in checks)
    return checks


def _found(checks: dict[str, Any]) -> dict[str, str]:
    return {name.removeprefix("credential "): check["found"] for name, check in checks.items() if "credential" in name}


def test_each_credential_with_its_origin(deployment: Deployment) -> None:
    deployment.passwords[USER] = deployment.secret()
    deployment.vault.put("refDBpwd", deployment.passwords[USER])
    deployment.vault.put("databricks-access-token", deployment.token())
    (deployment.folder / "host").write_text(deployment.workspace.url)
    place = {**deployment.place, "PM_POSTGRES_USER": "{{secrets/" + SCOPE + "/refDBuser}}"}
    deployment.workspace.local.secrets.put(SCOPE, "refDBuser", USER)
    store = {"PM_SECRETS": f"keyvault://{VAULT}", "DATABRICKS_HOST": (deployment.folder / "host").as_uri()}
    checks = _doctor(deployment, 0, **place, **deployment.identity, **store)
    assert _found(checks) == {
        "PM_POSTGRES_HOST": "from environment variable",
        "PM_POSTGRES_PORT": "from environment variable",
        "PM_POSTGRES_DATABASE": "from environment variable",
        "PM_POSTGRES_USER": "from secret scope tp_dpf2cdl, key refDBuser",
        "PM_POSTGRES_PASSWORD": "from PM_SECRETS: Key Vault team-vault, secret refDBpwd",
        "DATABRICKS_HOST": f"from file {deployment.folder}/host",
        "DATABRICKS_TOKEN": "from PM_SECRETS: Key Vault team-vault, secret databricks-access-token",
    }
    found = f"signed in to {deployment.workspace.url} as sandbox@example.com by pat, with databricks-sdk "
    assert checks["workspace"]["found"].startswith(found)


def test_entra_id_and_the_way_to_sign_in(deployment: Deployment) -> None:
    entra = {**deployment.place, "PM_POSTGRES_AUTH": "entra", **deployment.identity}
    azure = {
        "DATABRICKS_HOST": deployment.workspace.url,
        "ARM_TENANT_ID": entra_site.TENANT,
        "ARM_CLIENT_ID": entra_site.CLIENT_ID,
        "ARM_CLIENT_SECRET": deployment.entra.client_secret,
    }
    checks = _doctor(deployment, 0, **entra, **azure)
    assert _found(checks)["of the database user"] == "a token from Entra ID"
    assert checks["workspace"]["found"].partition(" with databricks-sdk ")[0].endswith(" by azure-client-secret,")


def test_what_cannot_be_had_is_red_with_a_remedy_and_the_rest_is_checked(deployment: Deployment) -> None:
    variables = {**deployment.with_password(), **deployment.with_token(), "DATABRICKS_TOKEN": "file:///nowhere/token"}
    checks = _doctor(deployment, 1, **variables)
    red = {name: check["found"] for name, check in checks.items() if not check["ok"]}
    assert red == {
        "credential DATABRICKS_TOKEN": "DATABRICKS_TOKEN (file /nowhere/token): there is no such file",
        "workspace": "not tried: DATABRICKS_TOKEN is not known",
    }
    assert all(check["remedy"] for check in checks.values() if not check["ok"])
    assert checks["privileges"]["ok"]

    variables = {**deployment.place, **deployment.with_token(), "PM_POSTGRES_PASSWORD": "keyvault://nonsense"}
    checks = _doctor(deployment, 1, **variables)
    assert [name for name, check in checks.items() if not check["ok"]] == [
        "credential PM_POSTGRES_PASSWORD",
        "database",
    ]
    assert checks["workspace"]["ok"]


def test_a_store_that_cannot_be_read(deployment: Deployment) -> None:
    deployment.vault.trouble = [refusal(403, "Forbidden", "Caller is not authorized.", "ForbiddenByRbac")] * 2
    checks = _doctor(deployment, 1, PM_SECRETS=f"keyvault://{VAULT}", **deployment.identity, **deployment.with_token())
    red = [name for name, check in checks.items() if not check["ok"]]
    assert red == ["credential PM_SECRETS", "database"]
    assert "Key Vault Secrets User" in checks["credential PM_SECRETS"]["found"]
    assert checks["database"]["found"] == "not tried: PM_SECRETS is not known"
