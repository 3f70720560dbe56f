"""The calls on workspace files: get-status, mkdirs, list, export, import, import-file, delete.

Put here: request in, reply out, and the two encodings of an upload. Keep out: the files themselves (``files.py``).
Meaning and error codes: https://docs.databricks.com/api/workspace/workspace; import-file is what the Databricks CLI
(1.13.0) uploads with. There are files and folders, no notebooks.
"""

from __future__ import annotations

import base64
import binascii
import re

from starlette.requests import Request

from pm_dagster.sandbox.workspace.call import Call, Reply, body_of, unknown_call
from pm_dagster.sandbox.workspace.errors import invalid, malformed
from pm_dagster.sandbox.workspace.files import StoredObject, WorkspaceFiles
from pm_dagster.sandbox.workspace.model import Json
from pm_dagster.sandbox.workspace.views import millis
from pm_dagster.sandbox.workspace.workspace_path import as_asked

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
