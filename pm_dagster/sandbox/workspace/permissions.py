"""Who may do what with a job or a folder: access control lists, kept and given back, and the calls on them.

Cluster policies are here too: the local workspace has one, and lists it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from starlette.requests import Request

from pm_dagster.sandbox.workspace.call import Call, Reply, body_of, unknown_call
from pm_dagster.sandbox.workspace.errors import ApiError, invalid, malformed
from pm_dagster.sandbox.workspace.memory import StateFile
from pm_dagster.sandbox.workspace.model import USER_NAME, Json

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


_PRINCIPALS = ("user_name", "group_name", "service_principal_name")
_SINGULAR = {"jobs": "job", "directories": "directory"}


class PermissionsApi:
    """The handlers over the lists of one workspace; ``exists`` refuses an id of its object type that is not there."""

    def __init__(self, permissions: Permissions, exists: Mapping[str, Callable[[int], object]]) -> None:
        self._permissions, self._exists = permissions, exists

    def handle(self, request: Request, raw: bytes) -> Reply:
        """Read, set or change the list of one object."""
        change = {"GET": None, "PUT": self._permissions.replace, "PATCH": self._permissions.merge}
        if request.method not in change:
            raise unknown_call(request)
        kind, number = self._object(request)
        apply = change[request.method]
        if apply is not None:
            apply(kind, number, _grants(body_of(raw)))
        return Reply(_view(kind, number, self._permissions.of(kind, number)), effect=apply is not None)

    def levels(self, request: Request, _: bytes) -> Reply:
        """The levels that an object may have."""
        if request.method != "GET":
            raise unknown_call(request)
        kind, _number = self._object(request)
        return Reply({"permission_levels": [{"permission_level": level} for level in LEVELS[kind]]})

    def _object(self, request: Request) -> tuple[str, int]:
        kind, text = request.path_params["object_type"], request.path_params["object_id"]
        if kind not in LEVELS:
            raise ApiError(404, "ENDPOINT_NOT_FOUND", f"The local workspace keeps no permissions of {kind}.")
        if not (text.isascii() and text.isdigit()):
            raise invalid(f"{text} is not a valid id.")
        self._exists[kind](int(text))
        return kind, int(text)


def _grants(body: Json) -> list[Grant]:
    entries = body.get("access_control_list") or []
    if not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
        raise malformed("Expected array of objects for field access_control_list.")
    return [_grant(each) for each in entries]


def _grant(entry: Json) -> Grant:
    named = [(kind, entry[kind]) for kind in _PRINCIPALS if entry.get(kind)]
    if len(named) != 1 or not isinstance(named[0][1], str):
        raise invalid(f"An entry of access_control_list names exactly one of {', '.join(_PRINCIPALS)}.")
    return Grant(*named[0], str(entry.get("permission_level", "")))


def _view(kind: str, number: int, grants: list[Grant]) -> Json:
    principals = dict.fromkeys((each.kind, each.name) for each in grants)
    entries: list[Json] = [
        {
            principal[0]: principal[1],
            "all_permissions": [
                {"permission_level": each.level, "inherited": False}
                for each in grants
                if (each.kind, each.name) == principal
            ],
        }
        for principal in principals
    ]
    inherited = {"permission_level": "CAN_MANAGE", "inherited": True, "inherited_from_object": [f"/{kind}/"]}
    entries.append({"group_name": "admins", "all_permissions": [inherited]})
    return {"object_id": f"/{kind}/{number}", "object_type": _SINGULAR[kind], "access_control_list": entries}


POLICY_ID = "sandbox-policy"
_POLICY: Json = {
    "policy_id": POLICY_ID,
    "name": "Job Compute",
    "description": "The policy of the local workspace; it allows everything.",
    "definition": "{}",
    "creator_user_name": USER_NAME,
    "created_at_timestamp": 0,
    "is_default": False,
}


def list_policies(_: Call) -> Reply:
    """All policies."""
    return Reply({"policies": [_POLICY], "total_count": 1})


def get_policy(call: Call) -> Reply:
    """One policy."""
    asked = call.text("policy_id")
    if asked != POLICY_ID:
        raise ApiError(404, "RESOURCE_DOES_NOT_EXIST", f"Can't find a cluster policy with id: {asked}.")
    return Reply(_POLICY)
