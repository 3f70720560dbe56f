"""Page tokens and the cutting of lists into pages.

Put here: both ways of paging: by position (arrays of one run) and by key (lists that grow at the front meanwhile).
Keep out: what is listed.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import TypeVar

from pm_dagster.sandbox.workspace.errors import invalid

Item = TypeVar("Item")
Key = tuple[float, int]


def position_of(token: str | None) -> int:
    """Where the page begins."""
    return 0 if not token else int(_decode(token, 1)[0])


def position_token(position: int) -> str:
    """The token of the page that begins there."""
    return _encode(str(position))


def after_key(
    items: Sequence[Item], key: Callable[[Item], Key], token: str | None, limit: int
) -> tuple[list[Item], str]:
    """A page of items sorted by falling key, and the next page's token (empty on the last page)."""
    rest = list(items)
    if token:
        parts = _decode(token, 2)
        last = (float(parts[0]), int(parts[1]))
        rest = [item for item in rest if key(item) < last]
    page = rest[:limit]
    following = _encode(*map(repr, key(page[-1]))) if len(rest) > limit else ""
    return page, following


def _encode(*parts: str) -> str:
    return base64.urlsafe_b64encode(" ".join(parts).encode()).decode()


def _decode(token: str, count: int) -> list[str]:
    try:
        parts = base64.urlsafe_b64decode(token.encode()).decode().split(" ")
        numbers = [float(part) for part in parts]
    except ValueError:
        raise invalid("Invalid page_token.") from None
    if len(numbers) != count or any(number < 0 for number in numbers):
        raise invalid("Invalid page_token.")
    return parts
