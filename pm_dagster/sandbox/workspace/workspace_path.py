"""Paths of workspace objects: one form for each place, and a refusal of those that could mean another place.

Put here: reading a path that a caller sent. Keep out: what lies there (``files.py``). The real service has the same
folder at ``/Users/...`` and at ``/Workspace/Users/...``; within the sandbox a place is known by the shorter form.
"""

from __future__ import annotations

import re

from pm_dagster.sandbox.workspace.errors import ApiError, invalid

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
