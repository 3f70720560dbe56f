"""The files that were uploaded to the workspace, as plain files on disk below one folder.

Put here: storing, finding, listing and deleting files and folders. Keep out: HTTP (``files_api.py``), ids
(``object_ids.py``) and what a path may look like (``workspace_path.py``). A task that runs as a local process finds its
own source here, so the tree on disk has the names of the workspace.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pm_dagster.sandbox.workspace.auth import USER_NAME
from pm_dagster.sandbox.workspace.errors import ApiError, invalid
from pm_dagster.sandbox.workspace.object_ids import ObjectIds
from pm_dagster.sandbox.workspace.store import StateFile
from pm_dagster.sandbox.workspace.workspace_path import canonical, is_name, parent_of

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
