"""The client for the command line: unusable hosts and credentials are named, secrets are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from pm_dagster.config.settings import Settings
from pm_dagster.databricks.sign_in import check_host, signed_in
from pm_dagster.errors import ConfigurationError, WorkspaceUnavailable


@pytest.mark.parametrize(
    "host",
    [
        "https://adb-1.2.azuredatabricks.net",
        "https://adb-1.2.azuredatabricks.net/",
        "adb-1.2.azuredatabricks.net",
        "http://127.0.0.1:8080",
        "http://[::1]:8080",
    ],
)
def test_a_scheme_and_host_will_do(host: str) -> None:
    check_host(host)


@pytest.mark.parametrize("host", [None, ""])
def test_no_host_says_what_to_set(host: str | None) -> None:
    with pytest.raises(ConfigurationError, match="set DATABRICKS_HOST"):
        check_host(host)


@pytest.mark.parametrize(
    "host",
    [
        "https://adb-1.2.azuredatabricks.net/?o=1",
        "https://adb-1.2.azuredatabricks.net/jobs",
        "https://adb-1.2.azuredatabricks.net#job/1",
        "https://",
        "https://me:hunter2@host",
        "http://[::1",
        "http://host:port",
        "ftp://host",
    ],
)
def test_more_than_a_host_is_refused(host: str) -> None:
    with pytest.raises(ConfigurationError, match="DATABRICKS_HOST") as caught:
        check_host(host)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "host", ["http://adb-1.2.azuredatabricks.net", "http://10.0.0.1:8080", "http://127.0.0.1.nip.io"]
)
def test_a_token_does_not_travel_in_clear(host: str) -> None:
    environment = {"DATABRICKS_HOST": host, "DATABRICKS_TOKEN": "a-token"}
    with pytest.raises(ConfigurationError, match="anybody on the way can read our token"):
        signed_in(environment, Settings())
    assert signed_in(environment, Settings(allow_http=True)).host == host


def test_a_profile_does_not_get_around_that(tmp_path: Path) -> None:
    (tmp_path / "profiles").write_text("[team]\nhost = http://10.0.0.1\ntoken = a-token\n")
    environment = {"DATABRICKS_CONFIG_PROFILE": "team", "DATABRICKS_CONFIG_FILE": str(tmp_path / "profiles")}
    with pytest.raises(ConfigurationError, match="anybody on the way can read our token"):
        signed_in(environment, Settings())


def test_a_workspace_that_does_not_answer_is_noticed_at_once_by_every_way() -> None:
    environment = {
        "DATABRICKS_HOST": "http://127.0.0.1:1",
        "DATABRICKS_CLIENT_ID": "id",
        "DATABRICKS_CLIENT_SECRET": "made-up-secret",
    }
    with pytest.raises(WorkspaceUnavailable, match="cannot connect"):
        signed_in(environment, Settings())


def test_a_token_signs_in_without_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"DATABRICKS_HOST": "https://adb-1.2.azuredatabricks.net", "DATABRICKS_TOKEN": "a-token"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = signed_in(environment, Settings())
    assert config.host == "https://adb-1.2.azuredatabricks.net"


def test_contradicting_credentials_are_refused_without_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {
        "DATABRICKS_HOST": "https://adb-1.2.azuredatabricks.net",
        "DATABRICKS_TOKEN": "first-secret",
        "DATABRICKS_CLIENT_ID": "an-id",
        "DATABRICKS_CLIENT_SECRET": "second-secret",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match="set DATABRICKS_AUTH_TYPE to one of pat, oauth-m2m") as caught:
        signed_in(environment, Settings())
    assert "first-secret" not in str(caught.value)
    assert "second-secret" not in str(caught.value)
