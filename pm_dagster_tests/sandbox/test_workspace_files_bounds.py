"""What no request and no task may do with workspace files: leave the tree, hide in the log, fill the memory."""

from __future__ import annotations

import http.client
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import requests

from pm_dagster.sandbox.workspace import LocalWorkspace
from pm_dagster.sandbox.workspace.errors import ApiError
from pm_dagster.sandbox.workspace.model import USER_NAME

HOME = f"/Workspace/Users/{USER_NAME}"
IMPORT = "/api/2.0/workspace-files/import-file"
CLIMBING = [
    "/Users/../../escaped",
    f"{HOME}/../../../../../../tmp/escaped",
    "/..",
    "/Workspace/../Users/escaped",
    f"{HOME}/./escaped",
    f"{HOME}/nul\0escaped",
    f"{HOME}/line\nescaped",
    f"{HOME}/escaped\n",
    f"{HOME}/" + "x" * 256,
    HOME + "/long" * 1000,
    "relative/escaped",
    "",
]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalWorkspace]:
    """A workspace whose surroundings on disk are this module's own."""
    folder = tmp_path_factory.mktemp("surroundings") / "sandbox"
    folder.mkdir()
    with LocalWorkspace(state_file=folder / "state.json") as workspace:
        yield workspace


def call(workspace: LocalWorkspace, method: str, path: str, **more: object) -> requests.Response:
    head = {"Authorization": f"Bearer {workspace.token}"}
    return requests.request(method, workspace.host + path, headers=head, timeout=30, **more)  # type: ignore[arg-type]  # json, data, params


def import_untidied(workspace: LocalWorkspace, path: str) -> int:
    """The status of an upload to a path that is sent as it is; requests would resolve the dots."""
    connection = http.client.HTTPConnection("127.0.0.1", workspace.port, timeout=10)
    head = {"Authorization": f"Bearer {workspace.token}"}
    connection.request("POST", f"{IMPORT}/{path}", body=b"x", headers=head)
    status = connection.getresponse().status
    connection.close()
    return status


def everything(workspace: LocalWorkspace) -> set[Path]:
    """What lies in the store and two folders further up."""
    return set(workspace.files.real_path("/").parents[2].rglob("*escaped*"))


@pytest.mark.parametrize("path", CLIMBING, ids=lambda path: path[-30:])
def test_a_path_stays_in_the_tree(empty: LocalWorkspace, path: str) -> None:
    before = everything(empty)
    answers = [
        call(empty, "POST", "/api/2.0/workspace/mkdirs", json={"path": path}),
        call(empty, "POST", "/api/2.0/workspace/import", json={"path": path, "format": "AUTO", "content": ""}),
        call(empty, "POST", "/api/2.0/workspace/delete", json={"path": path, "recursive": True}),
        *(call(empty, "GET", f"/api/2.0/workspace/{name}", params={"path": path}) for name in ("export", "get-status")),
    ]
    for answer in answers:
        assert answer.status_code == 400, answer.text
        assert answer.json()["error_code"] == "INVALID_PARAMETER_VALUE"
    if path.startswith("/"):
        assert import_untidied(empty, quote(path[1:], safe="")) == 400
    assert everything(empty) == before


@pytest.mark.parametrize(
    "path", ["../../escaped", "Users/../../escaped", "%2e%2e/%2e%2e/escaped", "Users%2F..%2Fescaped"]
)
def test_nor_does_one_that_no_client_has_tidied_up(empty: LocalWorkspace, path: str) -> None:
    assert import_untidied(empty, path) == 400


def test_half_a_surrogate_pair_is_no_name(empty: LocalWorkspace) -> None:
    body = f'{{"path": "{HOME}/\\ud800"}}'
    assert call(empty, "POST", "/api/2.0/workspace/mkdirs", data=body).status_code == 400


def test_a_link_that_a_task_left_leads_nowhere(empty: LocalWorkspace, tmp_path: Path) -> None:
    secret = tmp_path / "outside" / "secret"
    secret.parent.mkdir()
    secret.write_text("secret")
    home = empty.files.real_path(HOME)
    (home / "link").symlink_to(secret)
    (home / "folder").symlink_to(secret.parent)
    for path in (f"{HOME}/link", f"{HOME}/folder", f"{HOME}/folder/secret"):
        with pytest.raises(ApiError, match="link"):
            empty.files.read(path)
        with pytest.raises(ApiError, match="link"):
            empty.files.write(path, b"changed", overwrite=True)
        with pytest.raises(ApiError, match="link"):
            empty.files.delete(path, recursive=True)
    assert empty.files.list(HOME) == []
    empty.files.make_folder(f"{HOME}/own")
    (home / "own" / "link").symlink_to(secret.parent)
    empty.files.delete(f"{HOME}/own", recursive=True)
    empty.files.clear()
    assert secret.read_text() == "secret"


def test_what_a_task_wrote_is_seen_if_a_path_can_name_it(empty: LocalWorkspace) -> None:
    home = empty.files.real_path(HOME)
    (home / "written.txt").write_text("by a task")
    for name in (b"line\nfeed", b"no utf-8 \xff"):
        Path(os.fsdecode(bytes(home) + b"/" + name)).touch()
    (found,) = empty.files.list(HOME)
    assert (found.path, found.object_id) == (f"/Users/{USER_NAME}/written.txt", found.object_id)
    assert empty.files.status(f"{HOME}/written.txt").object_id == found.object_id
    assert empty.files.read(f"{HOME}/written.txt") == b"by a task"


def test_an_upload_ends_at_ten_megabytes(empty: LocalWorkspace) -> None:
    path = f"{IMPORT}/{quote(HOME[1:], safe='')}%2Fbig"
    limit = 10 * 1024 * 1024
    assert call(empty, "POST", path, data=b"x" * limit).status_code == 200
    for size in (limit + 1, 4 * limit):
        refused = call(empty, "POST", path, data=b"x" * size, params={"overwrite": "true"})
        assert refused.status_code == 413
        assert f"{size} bytes" in refused.json()["message"]
        assert "10 MB" in refused.json()["message"]
    assert len(empty.files.read(f"{HOME}/big")) == limit


def test_the_uploads_of_the_cli(empty: LocalWorkspace) -> None:
    escaped, plain = f"{IMPORT}/{quote(HOME[1:] + '/a b%.txt', safe='')}", f"{IMPORT}{HOME}/plain.txt"
    for path in (escaped, plain):
        assert call(empty, "POST", path, data=b"one", params={"overwrite": "false"}).status_code == 200
        again = call(empty, "POST", path, data=b"two", params={"overwrite": "false"})
        assert (again.status_code, again.json()["error_code"]) == (409, "RESOURCE_ALREADY_EXISTS")
        assert call(empty, "POST", path, data=b"three", params={"overwrite": "true"}).status_code == 200
    assert [each.path.rpartition("/")[2] for each in empty.files.list(HOME)] == ["a b%.txt", "plain.txt"]
    assert empty.files.read(f"{HOME}/a b%.txt") == b"three"


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=b", b"--b\r\n\r\nx\r\n--b--"),
        ("multipart/form-data; boundary=b", b""),
        ("application/json", b'{"path": "/a", "format": "AUTO", "content": "no base64"}'),
        ("application/json", b'{"path": "/a", "content": ""}'),
        ("application/json", b'{"path": 5, "format": "AUTO", "content": ""}'),
    ],
)
def test_an_import_of_the_wrong_shape_is_refused(empty: LocalWorkspace, kind: str, body: bytes) -> None:
    head = {"Authorization": f"Bearer {empty.token}", "Content-Type": kind}
    answer = requests.post(f"{empty.host}/api/2.0/workspace/import", data=body, headers=head, timeout=10)
    assert answer.status_code == 400
    assert [each.path for each in empty.files.list("/")] == ["/Shared", "/Users"]


def test_the_log_holds_sizes_instead_of_contents(empty: LocalWorkspace) -> None:
    content = b"not for the log"
    call(empty, "POST", f"{IMPORT}{HOME}/a.txt", data=content)
    form = {"content": content, "path": (None, f"{HOME}/b.txt"), "format": (None, "AUTO")}
    assert call(empty, "POST", "/api/2.0/workspace/import", files=form).status_code == 200
    call(empty, "POST", "/api/2.0/secrets/scopes/create", json={"scope": "s"})
    call(empty, "POST", "/api/2.0/secrets/put", json={"scope": "s", "key": "k", "string_value": content.decode()})
    text = call(empty, "GET", "/sandbox/log").text
    assert content.decode() not in text
    assert f"<{len(content)} bytes>" in text
    assert empty.log.count("secrets/put", effect=True) == 1


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/2.0/workspace/get-status?path=/"),
        ("GET", "/api/2.0/workspace/list?path=/"),
        ("GET", "/api/2.0/workspace/export?path=/a"),
        ("POST", "/api/2.0/workspace/mkdirs"),
        ("POST", "/api/2.0/workspace/delete"),
        ("POST", "/api/2.0/workspace/import"),
        ("POST", f"{IMPORT}/a"),
        ("GET", "/api/2.0/permissions/jobs/1"),
        ("PUT", "/api/2.0/permissions/jobs/1"),
        ("GET", "/api/2.0/permissions/jobs/1/permissionLevels"),
        ("GET", "/api/2.0/policies/clusters/list"),
        ("GET", "/api/2.0/policies/clusters/get"),
        ("GET", "/api/2.0/secrets/get?scope=s&key=k"),
        ("GET", "/api/2.0/secrets/list?scope=s"),
        ("GET", "/api/2.0/secrets/scopes/list"),
        ("POST", "/api/2.0/secrets/put"),
        ("POST", "/telemetry-ext"),
    ],
)
def test_nothing_without_the_token_and_nothing_by_the_wrong_method(
    empty: LocalWorkspace, method: str, path: str
) -> None:
    stranger = requests.request(method, empty.host + path, json={}, timeout=10)
    assert (stranger.status_code, stranger.json()["error_code"]) == (401, "UNAUTHORIZED")
    wrong = call(empty, "DELETE", path)
    assert (wrong.status_code, wrong.json()["error_code"]) == (404, "ENDPOINT_NOT_FOUND")
    if method == "POST":
        assert call(empty, "GET", path, params={"path": "/a"}).status_code == 404
    empty.faults.add("*", "status", status=503)
    assert call(empty, method, path, json={}).status_code == 503


def test_anybody_may_ask_what_this_host_is(empty: LocalWorkspace) -> None:
    answer = requests.get(f"{empty.host}/.well-known/databricks-config", timeout=10)
    me = call(empty, "GET", "/api/2.0/preview/scim/v2/Me")
    assert answer.json() == {
        "oidc_endpoint": f"{empty.host}/oidc",
        "workspace_id": me.headers["X-Databricks-Org-Id"],
        "cloud": "Azure",
    }
    sent = call(empty, "POST", "/telemetry-ext", json={"protoLogs": ["{}", "{}"]})
    assert sent.json() == {"errors": [], "numProtoSuccess": 2}
