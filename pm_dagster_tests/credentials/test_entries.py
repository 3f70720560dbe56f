"""The same references for every entry: command line, Dagster, cluster; and a machine without the Azure libraries."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import pm_dagster
from pm_dagster.orchestration import names
from pm_dagster_tests.credentials.deployment import SCOPE, USER, VAULT, Deployment

_CLUSTER = Path(pm_dagster.__file__).parent / "cluster" / "process_manager.py"
_ENTRIES = {
    "command line": ["-m", "pm_dagster.cli", "dispatch"],
    "dagster": ["-m", "dagster", "job", "execute", "-m", "pm_dagster.definitions", "-j", names.JOB],
    "cluster": [str(_CLUSTER), "--read", "driver"],
}
_RUNTIME = """
class Context:
    workspaceUrl = {host!r}
    apiToken = {token!r}

def get_context():
    return Context
"""


def _run(deployment: Deployment, arguments: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **deployment.base, **variables}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=False)
    deployment.assert_silent(done.stdout + done.stderr)
    return done


def _everywhere(deployment: Deployment) -> dict[str, str]:
    """A file, a vault, a scope, and a store."""
    deployment.passwords[USER] = deployment.secret()
    deployment.vault.put("db", deployment.passwords[USER])
    (deployment.folder / "token").write_text(f"{deployment.token()}\n")
    deployment.workspace.local.secrets.put(SCOPE, "refDBuser", USER)
    deployment.workspace.local.secrets.put(SCOPE, "host", deployment.place["PM_POSTGRES_HOST"])
    return {
        **deployment.place,
        **deployment.identity,
        "PM_SECRETS": f"databricks-secret://{SCOPE}",
        "PM_POSTGRES_USER": "",
        "PM_POSTGRES_HOST": f"{{{{secrets/{SCOPE}/host}}}}",
        "PM_POSTGRES_PASSWORD": f"@Microsoft.KeyVault(VaultName={VAULT};SecretName=db)",
        "DATABRICKS_HOST": deployment.workspace.url,
        "DATABRICKS_TOKEN": (deployment.folder / "token").as_uri(),
    }


def _kept(deployment: Deployment) -> str:
    """Everything that the database has in it."""
    tables = ("mm_run_plc", "process_manager.entry", "process_manager.event", "process_manager.dispatcher")
    return repr([deployment.sql(f"SELECT * FROM {name}") for name in tables])  # noqa: S608 names are ours


@pytest.mark.parametrize("entry", _ENTRIES)
def test_a_dispatch_by_every_entry(deployment: Deployment, entry: str) -> None:
    deployment.add(2)
    done = _run(deployment, _ENTRIES[entry], **_everywhere(deployment))
    assert done.returncode == 0, done.stderr[-4000:]
    assert (deployment.statuses(), deployment.runs) == ({"SCHEDULED": 2}, 2)
    deployment.assert_silent(_kept(deployment))


@pytest.mark.parametrize("entry", _ENTRIES)
def test_a_reference_that_leads_nowhere_is_named_by_every_entry(deployment: Deployment, entry: str) -> None:
    deployment.add(2)
    done = _run(deployment, _ENTRIES[entry], **{**_everywhere(deployment), "DATABRICKS_TOKEN": "file:///nowhere"})
    assert done.returncode != 0
    assert "DATABRICKS_TOKEN (file /nowhere): there is no such file" in done.stdout + done.stderr
    assert deployment.statuses() == {"WAITING": 2}


def test_the_identity_of_a_cluster(deployment: Deployment) -> None:
    """What the SDK asks the runtime for: databricks-sdk 0.60, runtime/__init__.py."""
    runtime = deployment.folder / "runtime" / "dbruntime"
    runtime.mkdir(parents=True)
    (runtime / "__init__.py").write_text("")
    context = _RUNTIME.format(host=deployment.workspace.host, token=deployment.token())
    (runtime / "databricks_repl_context.py").write_text(context)
    deployment.add()
    cluster = {"DATABRICKS_RUNTIME_VERSION": "16.4", "PYTHONPATH": str(runtime.parent)}
    done = _run(deployment, _ENTRIES["cluster"], **deployment.with_password(), **cluster)
    assert done.returncode == 0, done.stderr
    assert deployment.statuses() == {"SCHEDULED": 1}


@pytest.mark.parametrize(
    ("variables", "library"),
    [
        ({"PM_POSTGRES_PASSWORD": f"keyvault://{VAULT}/db"}, "azure-keyvault-secrets"),
        ({"PM_POSTGRES_AUTH": "entra"}, "azure-identity"),
    ],
)
def test_without_the_azure_libraries(deployment: Deployment, variables: dict[str, str], library: str) -> None:
    code = (
        "import sys; sys.modules.update({'azure.identity': None, 'azure.keyvault': None})\n"
        "sys.argv = ['pm', 'status']\n"
        "from pm_dagster.cli import main; main()"
    )
    done = _run(deployment, ["-c", code], **deployment.place, **variables)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert f"{library} is not installed: install process-manager with its extra" in done.stderr


def test_a_machine_that_needs_no_azure_library_imports_none(deployment: Deployment) -> None:
    code = (
        "import sys; sys.argv = ['pm', 'status']\n"
        "from pm_dagster.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: print('ENDED', end.code, sorted(m for m in sys.modules if m.startswith('azure')))"
    )
    done = _run(deployment, ["-c", code], **deployment.with_password())
    assert done.stdout.splitlines()[-1] == "ENDED 0 []"
