"""Workspace files through the unmodified SDK: upload, download, folders, listing, deleting, and names of every kind."""

from __future__ import annotations

import base64
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import pytest
from databricks.sdk import WorkspaceClient
from databricks.sdk.core import DatabricksError
from databricks.sdk.errors import (
    BadRequest,
    InvalidParameterValue,
    NotFound,
    ResourceAlreadyExists,
    ResourceDoesNotExist,
)
from databricks.sdk.service.workspace import ExportFormat, ImportFormat, Language, ObjectType

from pm_dagster.sandbox.workspace import LocalWorkspace
from pm_dagster.sandbox.workspace.model import USER_NAME

HOME = f"/Workspace/Users/{USER_NAME}"
EVERY_BYTE = bytes(range(256)) * 2
NAMES = [
    "plain.py",
    "with space.txt",
    "percent %2e%2e%2F.txt",
    "question?#fragment&x=1",
    "plus+and;semicolon",
    "ümläut 文件 🚀.json",
    "back\\slash",
    "quote'\"quote",
    ".hidden",
    "...",
    "-rf",
    "no.break\u00a0space",
    "x" * 251 + ".txt",
]


def upload(sdk: WorkspaceClient, path: str, content: bytes, *, overwrite: bool = False) -> None:
    sdk.workspace.upload(path, BytesIO(content), format=ImportFormat.AUTO, overwrite=overwrite)


def download(sdk: WorkspaceClient, path: str) -> bytes:
    with sdk.workspace.download(path, format=ExportFormat.AUTO) as stream:
        return stream.read()


@pytest.mark.parametrize("name", NAMES)
def test_a_file_comes_back_as_it_went(sdk: WorkspaceClient, name: str) -> None:
    path = f"{HOME}/{name}"
    upload(sdk, path, EVERY_BYTE)
    assert download(sdk, path) == EVERY_BYTE
    status = sdk.workspace.get_status(path)
    assert (status.object_type, status.path, status.size) == (ObjectType.FILE, path, len(EVERY_BYTE))
    assert [each.path for each in sdk.workspace.list(HOME)] == [path]
    sdk.workspace.delete(path)
    assert list(sdk.workspace.list(HOME)) == []


@pytest.mark.parametrize("content", [b"", b"\r\n", b"--boundary\r\n\r\n--", b"x" * 5_000_000, b"\xff\xfe"])
def test_any_content_is_kept_byte_for_byte(sdk: WorkspaceClient, content: bytes) -> None:
    upload(sdk, f"{HOME}/a.bin", content)
    assert download(sdk, f"{HOME}/a.bin") == content
    exported = sdk.workspace.export(f"{HOME}/a.bin")
    assert base64.b64decode(exported.content or "") == content
    encoded = base64.b64encode(content).decode()
    sdk.workspace.import_(f"{HOME}/b.bin", content=encoded, format=ImportFormat.RAW)
    assert download(sdk, f"{HOME}/b.bin") == content


def test_a_folder_and_those_above_it(sdk: WorkspaceClient) -> None:
    deep = HOME + "".join(f"/level {n}" for n in range(100))
    sdk.workspace.mkdirs(deep)
    sdk.workspace.mkdirs(deep + "/")
    upload(sdk, f"{deep}/a.txt", b"deep")
    assert sdk.workspace.get_status(deep).object_type == ObjectType.DIRECTORY
    assert [each.path for each in sdk.workspace.list(HOME, recursive=True)] == [f"{deep}/a.txt"]
    assert [each.path for each in sdk.workspace.list(f"{deep}/a.txt")] == [f"{deep}/a.txt"]
    with pytest.raises(BadRequest, match="not empty"):
        sdk.workspace.delete(f"{HOME}/level 0")
    sdk.workspace.delete(f"{HOME}/level 0", recursive=True)
    with pytest.raises(ResourceDoesNotExist):
        sdk.workspace.get_status(f"{deep}/a.txt")


def test_both_forms_of_a_path_are_one_place(sdk: WorkspaceClient) -> None:
    short = HOME.removeprefix("/Workspace")
    upload(sdk, f"{short}/a.txt", b"one")
    assert download(sdk, f"{HOME}/a.txt") == b"one"
    assert sdk.workspace.get_status(f"{short}/a.txt").path == f"{short}/a.txt"
    assert sdk.workspace.get_status(f"{HOME}//a.txt/").path == f"{HOME}/a.txt"
    assert [each.path for each in sdk.workspace.list("/")] == ["/Shared", "/Users"]
    assert [each.path for each in sdk.workspace.list("/Workspace")] == ["/Workspace/Shared", "/Workspace/Users"]
    both = [sdk.workspace.get_status(f"{root}/a.txt").object_id for root in (short, HOME)]
    assert both[0] == both[1]


def test_an_id_stays_until_the_object_is_deleted(sdk: WorkspaceClient) -> None:
    def id_of(path: str) -> int:
        return sdk.workspace.get_status(path).object_id or 0

    upload(sdk, f"{HOME}/a.txt", b"one")
    first = id_of(f"{HOME}/a.txt")
    upload(sdk, f"{HOME}/a.txt", b"two", overwrite=True)
    assert id_of(f"{HOME}/a.txt") == first
    assert id_of(HOME) == id_of(HOME) != first
    sdk.workspace.delete(f"{HOME}/a.txt")
    upload(sdk, f"{HOME}/a.txt", b"three")
    assert id_of(f"{HOME}/a.txt") > first


def test_nothing_is_overwritten_unasked(sdk: WorkspaceClient) -> None:
    upload(sdk, f"{HOME}/a.txt", b"one")
    with pytest.raises(ResourceAlreadyExists):
        upload(sdk, f"{HOME}/a.txt", b"two")
    assert download(sdk, f"{HOME}/a.txt") == b"one"
    upload(sdk, f"{HOME}/a.txt", b"two", overwrite=True)
    assert download(sdk, f"{HOME}/a.txt") == b"two"
    with pytest.raises(ResourceAlreadyExists):
        sdk.workspace.mkdirs(f"{HOME}/a.txt/below")
    sdk.workspace.mkdirs(f"{HOME}/folder")
    with pytest.raises(ResourceAlreadyExists, match="directory"):
        upload(sdk, f"{HOME}/folder", b"three", overwrite=True)


def test_what_is_not_there_is_not_found(sdk: WorkspaceClient) -> None:
    missing = f"{HOME}/missing"
    calls: list[Callable[[], object]] = [
        lambda: sdk.workspace.get_status(missing),
        lambda: list(sdk.workspace.list(missing)),
        lambda: download(sdk, missing),
        lambda: sdk.workspace.delete(missing, recursive=True),
        lambda: upload(sdk, f"{missing}/a.txt", b""),
    ]
    for call in calls:
        with pytest.raises(NotFound, match=f"Path \\({missing}.*doesn't exist"):
            call()


def test_the_first_folders_stay(sdk: WorkspaceClient) -> None:
    for path in ("/", "/Workspace", "/Users", "/Workspace/Shared", HOME):
        with pytest.raises(BadRequest, match="protected"):
            sdk.workspace.delete(path, recursive=True)
    assert sdk.workspace.get_status(HOME).object_type == ObjectType.DIRECTORY


@pytest.mark.parametrize("name", ["a.py", "a.ipynb"])
def test_notebooks_are_refused_rather_than_mistaken(sdk: WorkspaceClient, name: str) -> None:
    source = b"# Databricks notebook source\nprint(1)"
    with pytest.raises(DatabricksError, match="notebook"):
        upload(sdk, f"{HOME}/{name}", source)
    with pytest.raises(DatabricksError, match="format"):
        sdk.workspace.upload(f"{HOME}/b.py", BytesIO(b"print(1)"), language=Language.PYTHON)
    assert list(sdk.workspace.list(HOME)) == []


def test_a_folder_has_no_content(sdk: WorkspaceClient) -> None:
    with pytest.raises(InvalidParameterValue, match="is a directory"):
        download(sdk, HOME)


def test_many_at_once(sdk: WorkspaceClient, empty: LocalWorkspace) -> None:
    """Writers of one file and of many, readers in between: nobody sees half a file."""
    whole = [bytes([n]) * 200_000 for n in range(8)]
    upload(sdk, f"{HOME}/shared", whole[0])

    def work(n: int) -> None:
        sdk.workspace.mkdirs(f"{HOME}/folder {n % 3}")
        upload(sdk, f"{HOME}/folder {n % 3}/{n}", whole[n])
        upload(sdk, f"{HOME}/shared", whole[n], overwrite=True)
        assert empty.files.read(f"{HOME}/shared") in whole
        assert download(sdk, f"{HOME}/shared") in whole

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    found = {each.path: each.object_id for each in sdk.workspace.list(HOME, recursive=True)}
    assert len(found) == 9
    assert len(set(found.values())) == 9
    for n in range(8):
        assert download(sdk, f"{HOME}/folder {n % 3}/{n}") == whole[n]
