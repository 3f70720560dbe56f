"""Reads job settings strictly: every field has to be one that the Jobs API knows, of its type.

The knowledge is the official SDK's (Apache-2.0): its dataclasses name every field, type and word. The SDK's own
``from_dict`` drops what it does not know without a word, which is why it cannot serve as a check.
"""

from __future__ import annotations

import dataclasses
import enum
import types
from collections.abc import Iterator
from typing import Any, Union, get_args, get_origin, get_type_hints

from databricks.sdk.service.jobs import JobSettings


def mistakes(settings: object) -> list[str]:
    """What is wrong with the settings of a job, each with its dotted path; empty when nothing is."""
    return list(_check(settings, JobSettings, "job"))


def _check(value: object, wanted: Any, path: str) -> Iterator[str]:  # noqa: ANN401 a type annotation
    if get_origin(wanted) in (Union, types.UnionType):
        (wanted,) = (each for each in get_args(wanted) if each is not type(None))
    origin = get_origin(wanted)
    if dataclasses.is_dataclass(wanted) and isinstance(wanted, type):
        yield from _check_object(value, wanted, path)
    elif origin is list:
        yield from _check_items(value, list, wanted, path)
    elif origin is dict:
        yield from _check_items(value, dict, wanted, path)
    elif isinstance(wanted, type) and issubclass(wanted, enum.Enum):
        if value not in [each.value for each in wanted]:
            yield f"{path}: {value!r} is none of {[each.value for each in wanted]}"
    elif not _is_a(value, wanted):
        yield f"{path}: {value!r} is no {getattr(wanted, '__name__', wanted)}"


def _check_object(value: object, wanted: type, path: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{path}: {value!r} is no object"
        return
    hints = get_type_hints(wanted)
    required = {
        each.name
        for each in dataclasses.fields(wanted)
        if each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
    }
    yield from (f"{path}.{name}: required, and not there" for name in sorted(required - set(value)))
    for name, child in value.items():
        if name in hints:
            yield from _check(child, hints[name], f"{path}.{name}")
        else:
            yield f"{path}.{name}: {wanted.__name__} has no such field"


def _check_items(value: object, kind: type, wanted: Any, path: str) -> Iterator[str]:  # noqa: ANN401 a type annotation
    if not isinstance(value, kind):
        yield f"{path}: {value!r} is no {kind.__name__}"
        return
    items = value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ())
    for key, item in items:
        yield from _check(item, get_args(wanted)[-1], f"{path}.{key}")


def _is_a(value: object, wanted: Any) -> bool:  # noqa: ANN401 a type annotation
    if wanted is Any:
        return True
    if isinstance(value, bool):
        return wanted is bool
    return isinstance(value, (int, float) if wanted is float else wanted)
