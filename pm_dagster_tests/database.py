"""What a statement of a test gave."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from psycopg2.extensions import cursor as Cursor  # noqa: N812


def fetched(cursor: Cursor) -> list[tuple[Any, ...]]:
    """The rows, none for a statement that gives none.

    The description of ``SELECT FROM ...`` is an empty tuple, not None: its rows have no columns, and still count.
    """
    return cursor.fetchall() if cursor.description is not None else []
