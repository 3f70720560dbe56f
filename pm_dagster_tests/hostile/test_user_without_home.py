"""`pm` as a container starts it under a random user: no entry in passwd, no HOME, no USER, no folder of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pm_dagster_tests.cli.shell import Shell

_UID = "4242"
#: As root by capability, so that the files of the tests may lie in a closed folder; else in a namespace of our own.
_AS_NOBODY = (
    [
        *("setpriv", f"--reuid={_UID}", f"--regid={_UID}", "--clear-groups"),
        *("--inh-caps=+dac_override", "--ambient-caps=+dac_override", "--"),
    ]
    if os.geteuid() == 0
    else ["unshare", "--user", f"--map-user={_UID}", f"--map-group={_UID}", "--"]
)
#: None, none that is usable, and one whose name no system call takes.
_HOMES: list[dict[str, str]] = [{}, {"HOME": ""}, {"HOME": "/dev/null"}, {"HOME": "/" + "x" * 5000}]
_LOST = ("HOME", "USER", "LOGNAME", "USERNAME", "LNAME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")


def _pm(shell: Shell, *arguments: str, lost: tuple[str, ...] = (), **more: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in shell.environment().items() if name not in (*_LOST, *lost)}
    command = [*_AS_NOBODY, sys.executable, "-m", "pm_dagster.cli", *arguments]
    return subprocess.run(command, env={**environment, **more}, capture_output=True, text=True, check=False)


def _one_line(done: subprocess.CompletedProcess[str], words: str) -> None:
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert words in done.stderr
    assert "an error in pm itself" not in done.stderr


def test_the_user_has_no_name() -> None:
    code = "import pwd, os; pwd.getpwuid(os.getuid())"
    done = subprocess.run([*_AS_NOBODY, sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "uid not found: 4242" in done.stderr


@pytest.mark.slow
def test_every_command_works(shell: Shell) -> None:
    (row,) = shell.add()
    commands = [["init"], ["plan"], ["doctor"], ["dispatch"], ["status"], ["explain", str(row)], ["redrive", str(row)]]
    for arguments in [*commands, ["grants", "--role", "somebody"]]:
        done = _pm(shell, *arguments)
        assert (done.returncode, done.stderr) == (0, ""), (arguments, done.stdout)
    assert shell.statuses() == {"SCHEDULED": 1}


@pytest.mark.parametrize("home", _HOMES, ids=lambda home: str(home)[:20])
def test_without_a_workspace_it_says_so(shell: Shell, home: dict[str, str]) -> None:
    shell.add()
    lost = ("DATABRICKS_HOST", "DATABRICKS_TOKEN")
    _one_line(_pm(shell, "dispatch", lost=lost, **home), "no workspace is configured: set DATABRICKS_HOST")
    _one_line(_pm(shell, "dispatch", lost=lost, DATABRICKS_CONFIG_PROFILE="team", **home), "workspace")


@pytest.mark.parametrize("home", _HOMES, ids=lambda home: str(home)[:20])
def test_without_credentials_of_the_workspace_it_says_so(shell: Shell, home: dict[str, str]) -> None:
    shell.add()
    done = _pm(shell, "dispatch", lost=("DATABRICKS_TOKEN",), **home)
    _one_line(done, "no complete way to sign in to the workspace is set")
    tenant = "00000000-0000-0000-0000-000000000000"
    done = _pm(shell, "dispatch", lost=("DATABRICKS_TOKEN",), ARM_TENANT_ID=tenant, **home)
    _one_line(done, "signing in by azure-cli is not possible")


def test_a_database_that_is_given_without_a_user(shell: Shell) -> None:
    _one_line(_pm(shell, "status", PM_POSTGRES_URL="postgresql://127.0.0.1:1/d"), "set PM_POSTGRES_USER")
    done = _pm(shell, "status", PM_POSTGRES_URL="", PM_POSTGRES_AUTH="entra", PM_POSTGRES_HOST="127.0.0.1")
    _one_line(done, "PM_POSTGRES_AUTH=entra")


def test_the_sandbox_says_that_its_server_needs_a_user_with_a_name(shell: Shell, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    done = _pm(shell, "sandbox", "demo", "--dir", str(tmp_path / "sandbox"))
    _one_line(done, "4242")
