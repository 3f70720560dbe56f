"""Text from outside, as Postgres can hold it."""

from __future__ import annotations

#: The longest reason or detail that is kept.
TEXT_LIMIT = 2000


def storable(text: str) -> str:
    """``text``, cut, without what no JSON of Postgres holds: NUL, and half a surrogate pair, which JSON may carry."""
    return text[:TEXT_LIMIT].replace("\x00", "").encode("utf-8", "replace").decode("utf-8")
