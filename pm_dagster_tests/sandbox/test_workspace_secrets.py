"""Secret scopes through the unmodified SDK, and the file that keeps them."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from databricks.sdk import WorkspaceClient
from databricks.sdk.core import DatabricksError
from databricks.sdk.errors import InvalidParameterValue, ResourceAlreadyExists, ResourceDoesNotExist
from databricks.sdk.service.workspace import ScopeBackendType

from pm_dagster.sandbox.workspace import LocalWorkspace
from pm_dagster.sandbox.workspace.errors import ApiError


def value(sdk: WorkspaceClient, scope: str, key: str) -> bytes:
    return base64.b64decode(sdk.secrets.get_secret(scope, key).value or "")


def test_a_secret_from_the_cradle_to_the_grave(sdk: WorkspaceClient, empty: LocalWorkspace) -> None:
    sdk.secrets.create_scope("team.one")
    sdk.secrets.put_secret("team.one", "pass_word-1", string_value="s3cr3t ü")
    assert value(sdk, "team.one", "pass_word-1") == "s3cr3t ü".encode()
    assert empty.secrets.get("team.one", "pass_word-1") == "s3cr3t ü"
    sdk.secrets.put_secret("team.one", "pass_word-1", string_value="")
    assert value(sdk, "team.one", "pass_word-1") == b""
    sdk.secrets.put_secret("team.one", "raw", bytes_value=base64.b64encode(b"\xff\0").decode())
    assert value(sdk, "team.one", "raw") == b"\xff\0"
    assert [each.key for each in sdk.secrets.list_secrets("team.one")] == ["pass_word-1", "raw"]
    assert [each.name for each in sdk.secrets.list_scopes()] == ["team.one"]
    sdk.secrets.delete_secret("team.one", "raw")
    assert empty.secrets.keys("team.one") == ["pass_word-1"]
    sdk.secrets.delete_scope("team.one")
    assert list(sdk.secrets.list_scopes()) == []
    assert empty.secrets.scopes() == []


def test_what_is_not_there_is_named(sdk: WorkspaceClient, empty: LocalWorkspace) -> None:
    for call in (
        lambda: sdk.secrets.get_secret("nowhere", "key"),
        lambda: list(sdk.secrets.list_secrets("nowhere")),
        lambda: sdk.secrets.put_secret("nowhere", "key", string_value="x"),
        lambda: sdk.secrets.delete_secret("nowhere", "key"),
        lambda: sdk.secrets.delete_scope("nowhere"),
    ):
        with pytest.raises(ResourceDoesNotExist, match="Scope nowhere does not exist"):
            call()
    empty.secrets.put("somewhere", "other", "x")
    with pytest.raises(ApiError, match="scope: somewhere and key: missing") as refusal:
        empty.secrets.get("somewhere", "missing")
    assert refusal.value.code == "RESOURCE_DOES_NOT_EXIST"
    with pytest.raises(ApiError, match=r"Scope nowhere .* key missing"):
        empty.secrets.get("nowhere", "missing")
    with pytest.raises(ResourceDoesNotExist, match="missing"):
        sdk.secrets.delete_secret("somewhere", "missing")


def test_what_cannot_be_is_refused_without_showing_a_value(sdk: WorkspaceClient, empty: LocalWorkspace) -> None:
    sdk.secrets.create_scope("s")
    with pytest.raises(ResourceAlreadyExists):
        sdk.secrets.create_scope("s")
    for name in ("with space", "x" * 129, "sl/ash", "new\nline"):
        with pytest.raises(InvalidParameterValue):
            sdk.secrets.create_scope(name)
        with pytest.raises(InvalidParameterValue) as refusal:
            sdk.secrets.put_secret("s", name, string_value="hidden value")
        assert "hidden value" not in str(refusal.value)
    for wrong in ({"string_value": "a", "bytes_value": "YQ=="}, {}, {"bytes_value": "no base64"}):
        with pytest.raises(DatabricksError):
            sdk.secrets.put_secret("s", "k", **wrong)
    with pytest.raises(InvalidParameterValue, match="131073 bytes"):
        sdk.secrets.put_secret("s", "k", string_value="x" * (128 * 1024 + 1))
    with pytest.raises(InvalidParameterValue, match="key vault"):
        sdk.secrets.create_scope("kv", scope_backend_type=ScopeBackendType.AZURE_KEYVAULT)
    assert empty.secrets.keys("s") == []
    empty.secrets.put("s", "bytes", b"\xff")
    with pytest.raises(ApiError, match="not text"):
        empty.secrets.get("s", "bytes")


def test_they_outlive_a_restart_in_a_file_of_the_owner(tmp_path: Path) -> None:
    first = LocalWorkspace(state_file=tmp_path / "state.json")
    first.secrets.put("s", "k", "kept for later")
    first.secrets.make_scope("bare")
    second = LocalWorkspace(state_file=tmp_path / "state.json")
    assert second.secrets.get("s", "k") == "kept for later"
    assert second.secrets.scopes() == ["bare", "s"]
    (kept,) = tmp_path.rglob("secrets.json")
    assert kept.stat().st_mode & 0o077 == 0
    assert kept.parent.stat().st_mode & 0o077 == 0
    second.reset()
    assert LocalWorkspace(state_file=tmp_path / "state.json").secrets.scopes() == []


def test_without_a_state_file_nothing_stays_on_disk() -> None:
    workspace = LocalWorkspace()
    workspace.secrets.put("s", "k", "v")
    folder = workspace.files.real_path("/").parent
    assert folder.stat().st_mode & 0o077 == 0
    del workspace
    assert not folder.exists()
