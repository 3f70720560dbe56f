"""Permissions and policies through the unmodified SDK: what is set comes back, an owner is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
from databricks.sdk import WorkspaceClient
from databricks.sdk.core import Config
from databricks.sdk.errors import InvalidParameterValue, NotFound, ResourceDoesNotExist
from databricks.sdk.service.iam import AccessControlRequest, ObjectPermissions, PermissionLevel
from databricks.sdk.service.jobs import JobAccessControlRequest, JobPermissionLevel

from pm_dagster.sandbox.workspace import LocalWorkspace
from pm_dagster.sandbox.workspace.model import USER_NAME

TEAM = AccessControlRequest(group_name="team", permission_level=PermissionLevel.CAN_MANAGE)
ROBOT = AccessControlRequest(service_principal_name="1-2-3", permission_level=PermissionLevel.CAN_MANAGE_RUN)
OWNER = AccessControlRequest(user_name="owner@example.com", permission_level=PermissionLevel.IS_OWNER)
KEPT = {USER_NAME: ["IS_OWNER"]}


@pytest.fixture
def job(empty: LocalWorkspace) -> str:
    empty.state.add_job("orders", 7)
    return "7"


def direct(found: ObjectPermissions) -> dict[str | None, list[str]]:
    """Principal -> levels, of what is not inherited."""
    return {
        each.group_name or each.user_name or each.service_principal_name: levels
        for each in found.access_control_list or []
        if (
            levels := [
                p.permission_level.value for p in each.all_permissions or [] if p.permission_level and not p.inherited
            ]
        )
    }


def test_a_list_is_set_as_a_whole_and_changed_in_part(sdk: WorkspaceClient, job: str) -> None:
    assert direct(sdk.permissions.get("jobs", job)) == KEPT
    given = sdk.permissions.set("jobs", job, access_control_list=[TEAM, ROBOT])
    assert direct(given) == {"team": ["CAN_MANAGE"], "1-2-3": ["CAN_MANAGE_RUN"], **KEPT}
    assert (given.object_id, given.object_type) == ("/jobs/7", "job")
    viewer = AccessControlRequest(group_name="team", permission_level=PermissionLevel.CAN_VIEW)
    sdk.permissions.update("jobs", job, access_control_list=[viewer])
    assert direct(sdk.permissions.get("jobs", job)) == {"1-2-3": ["CAN_MANAGE_RUN"], "team": ["CAN_VIEW"], **KEPT}
    sdk.permissions.set("jobs", job, access_control_list=[])
    assert direct(sdk.permissions.get("jobs", job)) == KEPT


def test_a_job_has_one_owner(sdk: WorkspaceClient, job: str) -> None:
    sdk.permissions.update("jobs", job, access_control_list=[OWNER, TEAM])
    assert direct(sdk.permissions.get("jobs", job)) == {"owner@example.com": ["IS_OWNER"], "team": ["CAN_MANAGE"]}
    second = AccessControlRequest(user_name="second", permission_level=PermissionLevel.IS_OWNER)
    group = AccessControlRequest(group_name="team", permission_level=PermissionLevel.IS_OWNER)
    for wrong in ([OWNER, second], [group]):
        with pytest.raises(InvalidParameterValue, match="exactly one owner"):
            sdk.permissions.set("jobs", job, access_control_list=wrong)
    sdk.permissions.set("jobs", job, access_control_list=[ROBOT])
    assert direct(sdk.permissions.get("jobs", job)) == {"1-2-3": ["CAN_MANAGE_RUN"], "owner@example.com": ["IS_OWNER"]}


def test_admins_inherit(sdk: WorkspaceClient, job: str) -> None:
    entries = sdk.permissions.get("jobs", job).access_control_list or []
    (admins,) = [each for each in entries if each.group_name == "admins"]
    assert [(p.permission_level, p.inherited) for p in admins.all_permissions or []] == [
        (PermissionLevel.CAN_MANAGE, True)
    ]


def test_the_calls_of_jobs_and_of_folders_are_the_same_lists(sdk: WorkspaceClient, job: str) -> None:
    request = JobAccessControlRequest(group_name="team", permission_level=JobPermissionLevel.CAN_VIEW)
    sdk.jobs.set_permissions(job, access_control_list=[request])
    assert direct(sdk.permissions.get("jobs", job)) == {"team": ["CAN_VIEW"], **KEPT}
    levels = sdk.jobs.get_permission_levels(job).permission_levels or []
    assert JobPermissionLevel.IS_OWNER in [each.permission_level for each in levels]
    sdk.workspace.mkdirs("/Shared/a")
    folder = str(sdk.workspace.get_status("/Shared/a").object_id)
    assert direct(sdk.permissions.get("directories", folder)) == {}
    reader = AccessControlRequest(user_name="reader", permission_level=PermissionLevel.CAN_READ)
    sdk.permissions.set("directories", folder, access_control_list=[TEAM, reader])
    assert direct(sdk.permissions.get("directories", folder)) == {"team": ["CAN_MANAGE"], "reader": ["CAN_READ"]}
    sdk.workspace.delete("/Shared/a")
    sdk.workspace.mkdirs("/Shared/a")
    again = str(sdk.workspace.get_status("/Shared/a").object_id)
    assert direct(sdk.permissions.get("directories", again)) == {}


def test_what_is_not_there_has_no_permissions(sdk: WorkspaceClient, empty: LocalWorkspace) -> None:
    empty.files.write("/Shared/file", b"", overwrite=False)
    file = str(empty.files.status("/Shared/file").object_id)
    for kind, number in (("jobs", "8"), ("directories", "8"), ("directories", file)):
        with pytest.raises(ResourceDoesNotExist):
            sdk.permissions.get(kind, number)
        with pytest.raises(ResourceDoesNotExist):
            sdk.permissions.set(kind, number, access_control_list=[TEAM])
    with pytest.raises(NotFound, match="clusters"):
        sdk.permissions.get("clusters", "8")
    with pytest.raises(InvalidParameterValue, match="not a valid id"):
        sdk.permissions.get("jobs", "x")


def test_an_entry_of_the_wrong_shape_is_refused(sdk: WorkspaceClient, job: str) -> None:
    edit = AccessControlRequest(user_name="x", permission_level=PermissionLevel.CAN_EDIT)
    nobody = AccessControlRequest(permission_level=PermissionLevel.CAN_VIEW)
    both = AccessControlRequest(user_name="x", group_name="y", permission_level=PermissionLevel.CAN_VIEW)
    for wrong in (edit, nobody, both):
        with pytest.raises(InvalidParameterValue):
            sdk.permissions.set("jobs", job, access_control_list=[wrong])
    assert direct(sdk.permissions.get("jobs", job)) == KEPT


def test_files_ids_and_permissions_outlive_a_restart(tmp_path: Path) -> None:
    def client(workspace: LocalWorkspace) -> WorkspaceClient:
        return WorkspaceClient(config=Config(host=workspace.host, token=workspace.token, auth_type="pat"))

    with LocalWorkspace(state_file=tmp_path / "state.json") as first:
        sdk = client(first)
        sdk.workspace.mkdirs("/Shared/a/b")
        first.files.write("/Shared/a/b/file", b"kept", overwrite=False)
        before = [(each.path, each.object_id) for each in sdk.workspace.list("/Shared", recursive=True)]
        folder = str(sdk.workspace.get_status("/Shared/a").object_id)
        sdk.permissions.set("directories", folder, access_control_list=[TEAM])
        first.files.make_folder("/Shared/gone")
        gone = first.files.status("/Shared/gone").object_id
        first.files.delete("/Shared/gone", recursive=False)
    # As a crash in the middle of a write leaves it.
    for name in ("objects.jsonl", "permissions.jsonl"):
        (record,) = tmp_path.rglob(name)
        with record.open("a") as stream:
            stream.write('{"obj')
    with LocalWorkspace(state_file=tmp_path / "state.json") as second:
        sdk = client(second)
        assert [(each.path, each.object_id) for each in sdk.workspace.list("/Shared", recursive=True)] == before
        assert second.files.read("/Workspace/Shared/a/b/file") == b"kept"
        assert direct(sdk.permissions.get("directories", folder)) == {"team": ["CAN_MANAGE"]}
        second.files.make_folder("/Shared/new")
        assert second.files.status("/Shared/new").object_id > gone
        second.reset()
        assert [each.path for each in second.files.list("/Shared")] == []
        with pytest.raises(ResourceDoesNotExist):
            sdk.permissions.get("directories", folder)


def test_there_is_one_policy(sdk: WorkspaceClient) -> None:
    (policy,) = sdk.cluster_policies.list()
    assert (policy.policy_id, policy.name) == ("sandbox-policy", "Job Compute")
    assert sdk.cluster_policies.get("sandbox-policy").name == "Job Compute"
    with pytest.raises(ResourceDoesNotExist, match="elsewhere"):
        sdk.cluster_policies.get("elsewhere")
