"""Nothing that a run leaves behind shows a secret, though all it talks to repeats them."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

import pm_dagster
from pm_dagster.orchestration import names
from pm_dagster_tests.credentials import conftest as its
from pm_dagster_tests.credentials import entra_site
from pm_dagster_tests.credentials.deployment import JOB, USER, VAULT, Deployment
from pm_dagster_tests.credentials.internet import json_reply
from pm_dagster_tests.security import echo
from pm_dagster_tests.security.scanner import Scanner

cloud, cloud_world = its.cloud, its.deployment

_CLUSTER = Path(pm_dagster.__file__).parent / "cluster" / "process_manager.py"
_TABLES = ("public.mm_run_plc", *(f"process_manager.{name}" for name in ("entry", "event", "dispatcher", "identity")))
_ROW = """INSERT INTO mm_run_plc (run_sttus_name, wkf_job_id, wkf_job_run_id, cntrt_id, file_name, rgstr_file_time)
          VALUES ('WAITING', %s, %s, 7, 'f.csv', now())"""
_DEBUG = "import logging, sys; logging.basicConfig(level=0); from pm_dagster.cli import main; main()"


class Place:
    """A deployment whose surroundings echoes, what runs in it, and what is left."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        #: With every character that some syntax has to escape.
        self.password = f"Zq'7 @/:%+\"\\&<>#?=;{secrets.token_urlsafe(8)}é"
        self.token = f"{secrets.token_urlsafe(9)}/~+=._-{secrets.token_urlsafe(9)}"
        deployment.entra.client_secret = secrets.token_urlsafe(30)
        deployment.passwords[USER] = self.password
        deployment.workspace.tokens.add(self.token)
        deployment.net.sites[deployment.workspace.host] = echo.echoing(deployment.workspace.site)
        self.planted = {"password": self.password, "token": self.token, "client secret": deployment.entra.client_secret}
        self.left = deployment.folder / "left"
        self.left.mkdir()

    @property
    def variables(self) -> dict[str, str]:
        """A dispatch with plain credentials."""
        return {
            **self.deployment.place,
            "PM_POSTGRES_PASSWORD": self.password,
            "DATABRICKS_HOST": self.deployment.workspace.url,
            "DATABRICKS_TOKEN": self.token,
            # With one, an answer that is none ends the pass when it comes first.
            "PM_CALL_TRIES": "2",
            "DATABRICKS_DEBUG_HEADERS": "true",
            "PYTHONFAULTHANDLER": "1",
        }

    def fill(self) -> None:
        """Rows for each of the echoes, and two for which there is a run."""
        failed = self.deployment.workspace.local.state.add_run(JOB, outcome="fail").run_id
        succeeded = self.deployment.workspace.local.state.add_run(JOB, outcome="succeed").run_id
        for job, run in [*((job, None) for job in echo.JOBS), (JOB, None), (JOB, failed), (JOB, succeeded)]:
            self.deployment.sql(_ROW, (job, run))

    def run(self, name: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
        """Run Python and keep what it says."""
        environment = {**os.environ, **self.deployment.base, **self.variables, **variables}
        command = [sys.executable, *arguments]
        done = subprocess.run(command, env=environment, cwd=self.left, capture_output=True, timeout=100, check=False)
        (self.left / f"{name}.out").write_bytes(done.stdout)
        (self.left / f"{name}.err").write_bytes(done.stderr)
        return done

    def pm(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
        """Run `pm`."""
        name = f"{'-'.join(arguments)}-{len(list(self.left.iterdir()))}"
        return self.run(name, "-m", "pm_dagster.cli", *arguments, **variables)

    def keep_database(self) -> None:
        """Put everything that the tables hold beside the rest."""
        for table in _TABLES:
            rows = self.deployment.sql(f"SELECT to_jsonb(t)::text, t::text FROM {table} t")  # noqa: S608 names are ours
            text = "\n".join(column for row in rows for column in row)
            (self.left / f"{table}.txt").write_text(text, encoding="utf-8")

    def assert_silent(self) -> None:
        """No secret and no token that was issued is in what is left."""
        issued = {f"issued token {number}": token for number, token in enumerate(self.deployment.entra.tokens)}
        found = Scanner({**self.planted, **issued}).found_under(self.left)
        assert found == {}


@pytest.fixture
def place(cloud_world: Deployment) -> Place:
    return Place(cloud_world)


@pytest.mark.slow
def test_the_commands(place: Place) -> None:
    place.fill()
    ids = [str(run_id) for (run_id,) in place.deployment.sql("SELECT run_id FROM mm_run_plc")]
    place.pm("plan")
    dispatched = place.pm("dispatch")
    assert dispatched.returncode == 0, dispatched.stderr[-2000:]
    place.pm("status")
    place.pm("explain", ids[0])
    place.pm("explain", *ids[-1:], "--json")
    place.pm("doctor", "--json")
    place.keep_database()
    place.assert_silent()


def test_debug_logs(place: Place) -> None:
    place.fill()
    done = place.run("debug", "-c", _DEBUG, "dispatch", "--json")
    assert done.returncode == 0, done.stderr[-2000:]
    assert b"DEBUG" in done.stderr
    place.assert_silent()


@pytest.mark.slow
def test_the_dagster_job(place: Place) -> None:
    place.fill()
    (place.left / "home").mkdir()
    (place.left / "home" / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
    job = ["-m", "dagster", "job", "execute", "-m", "pm_dagster.definitions", "-j", names.JOB]
    done = place.run("dagster", *job, DAGSTER_HOME=str(place.left / "home"))
    assert b"mark_scheduled" in done.stderr + done.stdout
    assert any(path.suffix == ".db" for path in (place.left / "home").rglob("*")), "events are kept"
    place.keep_database()
    place.assert_silent()


def test_the_cluster(place: Place) -> None:
    place.fill()
    done = place.run("cluster", str(_CLUSTER), "--read", "driver", "--report", "report.xlsx")
    assert done.returncode == 0, done.stderr[-2000:]
    assert (place.left / "report.xlsx").exists()
    place.assert_silent()


@pytest.mark.slow
def test_a_database_that_repeats_the_password(place: Place) -> None:
    place.deployment.passwords[USER] = "another"
    place.deployment.front.refusal = f"password authentication failed: {echo.all_forms(place.password)}"
    for command in ("status", "doctor", "dispatch", "init"):
        assert place.pm(command).returncode == 1
    place.assert_silent()


@pytest.mark.chaos
def test_a_url_that_cannot_be_read(place: Place) -> None:
    for url in (
        f"postgresql://{USER}:{place.password}@host:5432/db",
        f"host=h user=u password='{place.password}",
        f"jdbc:postgresql://host:5432/db?user=u&password={place.password}&ssl=maybe",
        place.password,
    ):
        place.pm("status", PM_POSTGRES_URL=url, PM_POSTGRES_HOST="", PM_POSTGRES_PASSWORD="")
        place.pm("doctor", "--json", PM_POSTGRES_URL=url, PM_POSTGRES_HOST="", PM_POSTGRES_PASSWORD="")
    place.assert_silent()


@pytest.mark.slow
def test_a_token_endpoint_and_a_vault_that_repeat_the_secret(place: Place) -> None:
    deployment, secret = place.deployment, place.deployment.entra.client_secret
    azure = {"ARM_TENANT_ID": entra_site.TENANT, "ARM_CLIENT_ID": entra_site.CLIENT_ID, "ARM_CLIENT_SECRET": secret}
    text = {"error": "invalid_client", "error_description": echo.all_forms(secret)}
    deployment.net.sites[entra_site.HOST] = lambda _: json_reply(text, 401)
    place.fill()
    for command in ("dispatch", "doctor"):
        assert place.pm(command, DATABRICKS_TOKEN="", **azure).returncode == 1
    assert place.pm("status", PM_POSTGRES_PASSWORD=f"keyvault://{VAULT}/db", **deployment.identity).returncode == 1
    place.assert_silent()


def test_a_vault_that_repeats_what_it_keeps(place: Place) -> None:
    place.deployment.vault.put("db", place.password)
    issued = echo.all_forms(place.password)
    place.deployment.vault.trouble = [json_reply({"error": {"code": "Forbidden", "message": issued}}, 403)] * 6
    variables = {"PM_POSTGRES_PASSWORD": f"keyvault://{VAULT}/db", **place.deployment.identity}
    assert place.pm("status", **variables).returncode == 1
    # What we never got we cannot know; a vault that tells it in a refusal has told everybody.
    place.planted.pop("password")
    place.assert_silent()
