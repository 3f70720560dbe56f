"""Who may do what with a job or a folder: access control lists as they were set, kept and given back.

Put here: the lists and the rules about owners. Keep out: HTTP (``permissions_api.py``), and enforcing: everybody with
the token may do everything.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

from pm_dagster.sandbox.workspace.auth import USER_NAME
from pm_dagster.sandbox.workspace.errors import invalid
from pm_dagster.sandbox.workspace.store import StateFile

OWNER = "IS_OWNER"
#: Object type -> the levels it knows: https://docs.databricks.com/api/workspace/permissions
LEVELS = {
    "jobs": ("CAN_VIEW", "CAN_MANAGE_RUN", OWNER, "CAN_MANAGE"),
    "directories": ("CAN_READ", "CAN_RUN", "CAN_EDIT", "CAN_MANAGE"),
}


@dataclass(frozen=True)
class Grant:
    """A level for one principal; ``kind`` is user_name, group_name or service_principal_name."""

    kind: str
    name: str
    level: str


class Permissions:
    """The grants on each object, by object type and id; a job that nobody set any on belongs to the user."""

    def __init__(self, file: StateFile) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._lists: dict[str, list[Grant]] = {}
        for record in file.load():
            self._lists[record["object"]] = [Grant(*each) for each in record["grants"]]
        file.replace(_record(key, grants) for key, grants in self._lists.items())

    def of(self, kind: str, number: int) -> list[Grant]:
        """The grants on an object, in the order in which they were given."""
        with self._lock:
            return list(self._current(kind, number))

    def replace(self, kind: str, number: int, grants: Iterable[Grant]) -> None:
        """Set the whole list; a job keeps its owner unless another is named.

        Raises:
            ApiError: 400 for a level that the object type does not have, or for an owner that cannot be one.
        """
        with self._lock:
            self._set(kind, number, list(grants))

    def merge(self, kind: str, number: int, grants: Iterable[Grant]) -> None:
        """Set the level of the principals named and leave the others. Raises as ``replace``."""
        fresh = list(grants)
        named = {(each.kind, each.name) for each in fresh}
        owned = any(each.level == OWNER for each in fresh)
        with self._lock:
            kept = [each for each in self._current(kind, number) if (each.kind, each.name) not in named]
            self._set(kind, number, [each for each in kept if not (owned and each.level == OWNER)] + fresh)

    def clear(self) -> None:
        """Forget every list."""
        with self._lock:
            self._lists.clear()
            self._file.replace([])

    def _current(self, kind: str, number: int) -> list[Grant]:
        first = [Grant("user_name", USER_NAME, OWNER)] if kind == "jobs" else []
        return self._lists.get(f"{kind}/{number}", first)

    def _set(self, kind: str, number: int, grants: list[Grant]) -> None:
        for each in grants:
            if each.level not in LEVELS[kind]:
                raise invalid(
                    f"{each.level} is not a permission level of {kind}: use one of {', '.join(LEVELS[kind])}."
                )
        owners = [each for each in grants if each.level == OWNER]
        if len(owners) > 1 or any(each.kind == "group_name" for each in owners):
            raise invalid("A job has exactly one owner, which is a user or a service principal.")
        if kind == "jobs" and not owners:
            grants += [each for each in self._current(kind, number) if each.level == OWNER]
        self._lists[f"{kind}/{number}"] = grants
        self._file.append([_record(f"{kind}/{number}", grants)])


def _record(key: str, grants: list[Grant]) -> dict[str, object]:
    return {"object": key, "grants": [[each.kind, each.name, each.level] for each in grants]}
