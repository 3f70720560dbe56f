"""A request as the API's handlers see it, and how its fields are read with the refusals of the service."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from starlette.requests import Request

from pm_dagster.sandbox.workspace.errors import ApiError, invalid, malformed
from pm_dagster.sandbox.workspace.model import Json
from pm_dagster.sandbox.workspace.views import Lens

_INT64_DIGITS = 20


@dataclass(frozen=True)
class Reply:
    """What a handler answers: JSON, or ``raw`` bytes instead; ``effect`` says that something changed."""

    body: Json = field(default_factory=dict)
    effect: bool = False
    raw: bytes | None = None


@dataclass(frozen=True)
class Call:
    """One request: the API version such as 2.2, its query and body."""

    version: str
    query: Mapping[str, str]
    body: Json
    lens: Lens

    def number(self, name: str, default: int | None = None) -> int:
        """A whole number that the caller has to give unless there is a default."""
        value = self.optional_number(name)
        value = default if value is None else value
        if value is None:
            raise invalid(f"Missing required field: {name}")
        return value

    def optional_number(self, name: str) -> int | None:
        """A whole number within int64, or None."""
        value = self._value(name)
        if value is None or value == "":
            return None
        if isinstance(value, str) and value.lstrip("-").isdecimal() and len(value) <= _INT64_DIGITS:
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not -(2**63) <= value < 2**63:
            raise malformed(f"Expected field {name} to be an INT64.")
        return value

    def flag(self, name: str) -> bool:
        """A boolean, false when absent."""
        value = self._value(name)
        if value is None or isinstance(value, bool):
            return bool(value)
        if value not in ("true", "false"):
            raise malformed(f"Expected field {name} to be a BOOLEAN.")
        return bool(value == "true")

    def text(self, name: str) -> str | None:
        """A string, or None."""
        value = self._value(name)
        if value is not None and not isinstance(value, str):
            raise malformed(f"Expected field {name} to be a STRING.")
        return value

    def texts(self, name: str) -> dict[str, str]:
        """A map of strings, empty when absent."""
        value = self.body.get(name) or {}
        if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
            raise malformed(f"Expected object of STRING for field {name}.")
        return value

    def keys(self, name: str) -> list[str]:
        """A list of strings, empty when absent."""
        value = self.body.get(name) or []
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise malformed(f"Expected array of STRING for field {name}.")
        return value

    def _value(self, name: str) -> object:
        return self.body[name] if name in self.body else self.query.get(name)


def unknown_call(request: Request) -> ApiError:
    """The refusal of a path or a method that the API does not have."""
    return ApiError(404, "ENDPOINT_NOT_FOUND", f"No API found for '{request.method} {request.url.path}'")


def body_of(raw: bytes) -> Json:
    """The JSON object of a request body; nothing counts as an empty one."""
    if not raw.strip():
        return {}
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        raise malformed("Invalid JSON given in the body of the request.") from None
    if not isinstance(body, dict):
        raise malformed("Expected object at the root.")
    return body
