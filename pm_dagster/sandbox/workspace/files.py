"""Workspace files: paths, object ids, the tree on disk, and the calls of the Workspace API on them.

Files are kept as a plain tree, so that a task imports its siblings. A path that climbs, or leads through a link, is
refused.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request

from pm_dagster.sandbox.workspace.call import Call, Reply, body_of, unknown_call
from pm_dagster.sandbox.workspace.errors import ApiError, invalid, malformed
from pm_dagster.sandbox.workspace.memory import FIRST_ID, StateFile
from pm_dagster.sandbox.workspace.model import USER_NAME, Json
from pm_dagster.sandbox.workspace.views import millis

_PREFIX = "/Workspace"
# What file systems take for one name.
_LONGEST_NAME = 255
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def canonical(path: str) -> str:
    """The place that a path names: from ``/``, without ``/Workspace``, without a slash at the end.

    Raises:
        ApiError: 400 for a path that is not absolute, climbs (``..``), or holds what no file name can.
    """
    if not path.startswith("/"):
        raise invalid(f"Path ({path}) must begin with '/'.")
    names = [name for name in path.split("/") if name]
    for name in names:
        _check(name, path)
    while names[:1] == [_PREFIX[1:]]:
        names.pop(0)
    return "/" + "/".join(names)


def as_asked(place: str, asked: str) -> str:
    """A place in the form in which the caller wrote its path: with ``/Workspace`` where that had it."""
    if asked == _PREFIX or asked.startswith(_PREFIX + "/"):
        return _PREFIX + ("" if place == "/" else place)
    return place


def parent_of(place: str) -> str:
    """The folder of a place; the root is its own."""
    return place.rpartition("/")[0] or "/"


def is_within(place: str, folder: str) -> bool:
    """Whether a place is the folder itself or lies somewhere below it."""
    return place == folder or place.startswith(folder.rstrip("/") + "/")


def is_name(name: str) -> bool:
    """Whether a file found on disk can be named in a path."""
    try:
        _check(name, name)
    except ApiError:
        return False
    return True


def _check(name: str, path: str) -> None:
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise invalid("The path holds half a surrogate pair; send it as UTF-8.") from None
    if name in (".", "..") or _CONTROL.search(name):
        raise invalid(f"Path ({path!r}) holds '.', '..' or a control character.")
    if size > _LONGEST_NAME:
        raise invalid(f"A name in the path has {size} bytes; at most {_LONGEST_NAME} are possible.")


class ObjectIds:
    """The id of each place, and since when it has it; a place that is deleted and made again gets a new one."""

    def __init__(self, file: StateFile, clock: Callable[[], float]) -> None:
        self._file, self._clock = file, clock
        self._known: dict[str, tuple[int, float]] = {}
        # Even, where jobs and runs have odd ones: no two things of a workspace share an id.
        highest = FIRST_ID - 1
        for record in file.load():
            self._known.update({place: (number, made) for place, (number, made) in record.get("objects", {}).items()})
            for place in record.get("gone", []):
                self._known.pop(place, None)
            numbers = [number for number, _ in record.get("objects", {}).values()]
            highest = max([highest, record.get("highest", 0), *numbers])
        self._numbers = itertools.count(highest + 2, 2)
        file.replace([{"objects": self._known, "highest": highest}])

    def of(self, place: str) -> tuple[int, float]:
        """The id and the time it was given; a place that came into being without us gets its id now."""
        return self._known.get(place) or self.renew(place)

    def renew(self, place: str) -> tuple[int, float]:
        """Give the place an id that none had before."""
        self._known[place] = next(self._numbers), self._clock()
        self._file.append([{"objects": {place: self._known[place]}}])
        return self._known[place]

    def place_of(self, object_id: int) -> str | None:
        """The place with this id."""
        return next((place for place, (number, _) in self._known.items() if number == object_id), None)

    def drop(self, folder: str) -> None:
        """Forget the place and all below it."""
        gone = [place for place in self._known if is_within(place, folder)]
        for place in gone:
            del self._known[place]
        self._file.append([{"gone": gone}])

    def clear(self) -> None:
        """Forget every place; ids are not given again."""
        self._known.clear()
        self._file.replace([{"highest": next(self._numbers)}])


# They are there from the start and cannot be deleted.
_HOME = f"/Users/{USER_NAME}"
_PROTECTED = ("/", "/Users", "/Shared", _HOME)


@dataclass(frozen=True)
class StoredObject:
    """A file or folder: its place without ``/Workspace``, its id, its size and times in epoch seconds."""

    path: str
    object_id: int
    is_directory: bool
    size: int
    created: float
    modified: float


class WorkspaceFiles:
    """Files and folders below ``folder``; what is put there stays over a restart.

    Every method takes a path in either form (``/Users/...`` or ``/Workspace/Users/...``) and raises ApiError as the
    real service answers: 404 RESOURCE_DOES_NOT_EXIST for what is not there, 400 for a path that makes no sense.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self._tree, self._incoming = folder.resolve() / "files", folder.resolve() / "incoming"
        self._ids = ObjectIds(StateFile(folder / "objects.jsonl"), clock)
        self._lock = threading.RLock()
        # What a crash left half written.
        shutil.rmtree(self._incoming, ignore_errors=True)
        self._lay_out()

    def read(self, path: str) -> bytes:
        """The content of a file."""
        with self._lock:
            found = self.real_path(path)
            if found.is_dir():
                raise invalid(f"Path ({path}) is a directory.")
            return found.read_bytes()

    def real_path(self, path: str) -> Path:
        """Where a file or folder lies on disk."""
        found = self._on_disk(canonical(path))
        if not found.exists():
            raise _absent(path)
        return found

    def status(self, path: str) -> StoredObject:
        """What is known of a file or folder."""
        with self._lock:
            return self._described(canonical(path), self.real_path(path))

    def list(self, path: str) -> Sequence[StoredObject]:
        """What lies directly in a folder, by name; of a file, the file itself."""
        with self._lock:
            found = self.real_path(path)
            if not found.is_dir():
                return [self.status(path)]
            place = canonical(path).rstrip("/")
            return [self._described(f"{place}/{each.name}", each) for each in sorted(found.iterdir()) if _regular(each)]

    def check_folder(self, object_id: int) -> None:
        """Refuse, as 404, the id of a folder that is not there."""
        with self._lock:
            place = self._ids.place_of(object_id)
            if place is None or not self._on_disk(place).is_dir():
                raise ApiError(404, "RESOURCE_DOES_NOT_EXIST", f"Folder with id {object_id} does not exist.")

    def make_folder(self, path: str) -> bool:
        """Make a folder and those above it; False if it was there.

        Raises:
            ApiError: 400 RESOURCE_ALREADY_EXISTS when a file is in the way.
        """
        place = canonical(path)
        with self._lock:
            above = [folder for folder in _with_parents(place) if not self._on_disk(folder).is_dir()]
            for folder in above:
                if self._on_disk(folder).exists():
                    raise ApiError(400, "RESOURCE_ALREADY_EXISTS", f"Path ({folder}) already exists.")
                self._on_disk(folder).mkdir()
                self._ids.renew(folder)
        return bool(above)

    def write(self, path: str, content: bytes, *, overwrite: bool, exists_status: int = 400) -> None:
        """Store a file in a folder that exists; a reader sees the old content or the new one.

        Raises:
            ApiError: RESOURCE_ALREADY_EXISTS with ``exists_status`` when it may not be overwritten.
        """
        place = canonical(path)
        with self._lock:
            target = self._on_disk(place)
            if not self._on_disk(parent_of(place)).is_dir():
                raise _absent(parent_of(path.rstrip("/")))
            if target.is_dir():
                raise ApiError(400, "RESOURCE_ALREADY_EXISTS", f"Path ({path}) already exists and is a directory.")
            if target.exists() and not overwrite:
                raise ApiError(exists_status, "RESOURCE_ALREADY_EXISTS", f"Path ({path}) already exists.")
            self._replace(target, content, place)

    def delete(self, path: str, *, recursive: bool) -> None:
        """Remove a file or folder.

        Raises:
            ApiError: 400 DIRECTORY_NOT_EMPTY without ``recursive``; 400 DIRECTORY_PROTECTED for the folders that are
                there from the start.
        """
        place = canonical(path)
        with self._lock:
            found = self.real_path(path)
            if place in _PROTECTED:
                raise ApiError(400, "DIRECTORY_PROTECTED", f"Folder {path} is protected.")
            if found.is_dir() and any(found.iterdir()) and not recursive:
                raise ApiError(400, "DIRECTORY_NOT_EMPTY", f"Folder ({path}) is not empty.")
            if found.is_dir():
                shutil.rmtree(found)
            else:
                found.unlink()
            self._ids.drop(place)

    def clear(self) -> None:
        """Remove everything but the folders that are there from the start."""
        with self._lock:
            shutil.rmtree(self._tree)
            self._ids.clear()
            self._lay_out()

    def _lay_out(self) -> None:
        for folder in (self._tree, self._incoming):
            folder.mkdir(parents=True, exist_ok=True)
        for place in _PROTECTED[1:]:
            self._on_disk(place).mkdir(parents=True, exist_ok=True)

    def _on_disk(self, place: str) -> Path:
        found = self._tree.joinpath(*place.split("/")[1:])
        if len(os.fsencode(found)) >= os.pathconf(self._tree, "PC_PATH_MAX"):
            raise invalid("The path is too long.")
        # A task may have left a link here; nobody is led out of the tree by it.
        if os.path.realpath(found) != str(found).rstrip("/"):
            raise invalid(f"Path ({place}) leads through a link.")
        return found

    def _replace(self, target: Path, content: bytes, place: str) -> None:
        new = not target.exists()
        with tempfile.NamedTemporaryFile(dir=self._incoming, delete=False) as stream:
            stream.write(content)
        Path(stream.name).replace(target)
        if new:
            self._ids.renew(place)

    def _described(self, place: str, found: Path) -> StoredObject:
        stat = found.stat()
        object_id, created = self._ids.of(place)
        return StoredObject(place, object_id, found.is_dir(), stat.st_size, created, stat.st_mtime)


def _absent(path: str) -> ApiError:
    return ApiError(404, "RESOURCE_DOES_NOT_EXIST", f"Path ({path}) doesn't exist.")


def _regular(found: Path) -> bool:
    return not found.is_symlink() and (found.is_dir() or found.is_file()) and is_name(found.name)


def _with_parents(place: str) -> list[str]:
    names = place.split("/")[1:]
    return ["/" + "/".join(names[: n + 1]) for n in range(len(names)) if place != "/"]


IMPORT_FILE = "/api/2.0/workspace-files/import-file"
_NOTEBOOK = re.compile(rb"(#|--|//) Databricks notebook source")
_FILE_FORMATS = ("AUTO", "RAW")


class FilesApi:
    """The handlers over the files of one workspace."""

    def __init__(self, files: WorkspaceFiles) -> None:
        self._files = files

    def get_status(self, call: Call) -> Reply:
        """What a path is."""
        path = _path(call)
        return Reply(_view(self._files.status(path), path))

    def list_objects(self, call: Call) -> Reply:
        """What lies in a folder."""
        path = _path(call)
        found = [_view(each, path) for each in self._files.list(path)]
        return Reply({"objects": found} if found else {})

    def mkdirs(self, call: Call) -> Reply:
        """Make a folder and those above it."""
        return Reply(effect=self._files.make_folder(_path(call)))

    def delete(self, call: Call) -> Reply:
        """Remove a file or folder."""
        self._files.delete(_path(call), recursive=call.flag("recursive"))
        return Reply(effect=True)

    def export(self, call: Call) -> Reply:
        """A file's content: as it is with direct_download, else base64 in JSON."""
        content = self._files.read(_path(call))
        if call.flag("direct_download"):
            return Reply(raw=content)
        suffix = _path(call).rpartition("/")[2].rpartition(".")[2]
        return Reply({"content": base64.b64encode(content).decode(), "file_type": suffix})

    def import_(self, request: Request, raw: bytes) -> Reply:
        """Store a file: from JSON, or from a form as the SDK's upload sends it."""
        if request.method != "POST":
            raise unknown_call(request)
        kind = request.headers.get("content-type", "")
        fields = _form(raw, kind) if kind.startswith("multipart/form-data") else body_of(raw)
        if fields.get("format") not in _FILE_FORMATS:
            raise invalid("The local workspace has no notebooks: send format AUTO or RAW to store a plain file.")
        content = fields.get("content", "")
        return self._store(
            str(fields.get("path", "")),
            content if isinstance(content, bytes) else _decoded(content),
            overwrite=fields.get("overwrite") in (True, "true"),
            exists_status=400,
        )

    def import_file(self, request: Request, raw: bytes) -> Reply:
        """Store the body as the file that the URL's path names."""
        if request.method != "POST":
            raise unknown_call(request)
        path = "/" + request.path_params["path"].lstrip("/")
        overwrite = request.query_params.get("overwrite") == "true"
        return self._store(path, raw, overwrite=overwrite, exists_status=409)

    def _store(self, path: str, content: bytes, *, overwrite: bool, exists_status: int) -> Reply:
        if path.endswith(".ipynb") or _NOTEBOOK.match(content):
            raise invalid(f"Path ({path}) would be a notebook; the local workspace stores plain files only.")
        self._files.write(path, content, overwrite=overwrite, exists_status=exists_status)
        return Reply(effect=True)


def _path(call: Call) -> str:
    path = call.text("path")
    if not path:
        raise invalid("Missing required field: path")
    return path


def _view(found: StoredObject, asked: str) -> Json:
    view: Json = {
        "object_type": "DIRECTORY" if found.is_directory else "FILE",
        "path": as_asked(found.path, asked),
        "object_id": found.object_id,
        "resource_id": str(found.object_id),
    }
    if not found.is_directory:
        view |= {"created_at": millis(found.created), "modified_at": millis(found.modified), "size": found.size}
    return view


def _decoded(content: object) -> bytes:
    try:
        return base64.b64decode(str(content), validate=True)
    except (binascii.Error, ValueError):
        raise malformed("Expected base64 for field content.") from None


def _form(raw: bytes, kind: str) -> Json:
    """The fields of a multipart form, text but for the content: https://www.rfc-editor.org/rfc/rfc7578."""
    boundary = re.search(r'boundary="?([^";]+)', kind)
    if boundary is None:
        raise malformed("The form names no boundary.")
    fields: Json = {}
    for part in (b"\r\n" + raw).split(b"\r\n--" + boundary[1].encode())[1:-1]:
        head, _, content = part.partition(b"\r\n\r\n")
        name = re.search(rb'name="([a-z_]+)"', head)
        if name is None:
            raise malformed("A part of the form has no name.")
        fields[name[1].decode()] = content if name[1] == b"content" else content.decode("utf-8", "replace")
    return fields
