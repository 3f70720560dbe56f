"""The calls on permissions of jobs and folders: get, set (PUT), update (PATCH), permissionLevels.

Put here: request in, reply out. Keep out: the lists and their rules (``permissions.py``). Shapes as the Databricks CLI
(1.13.0) needs them: what was set comes back as ``all_permissions``, not inherited.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from starlette.requests import Request

from pm_dagster.sandbox.workspace.call import Reply, body_of, unknown_call
from pm_dagster.sandbox.workspace.errors import ApiError, invalid, malformed
from pm_dagster.sandbox.workspace.model import Json
from pm_dagster.sandbox.workspace.permissions import LEVELS, Grant, Permissions

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
