"""What stands behind an exception of a library. Put here: finding it. Keep out: what it means."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

#: Where azure-core and urllib3 keep an exception beside Python's own chain.
_HOLDERS = ("inner_exception", "reason")


def causes(error: BaseException) -> Iterator[BaseException]:
    """The exception and every one that it holds as an argument, a reason or a cause, each once."""
    seen: set[int] = set()
    pending: list[Any] = [error]
    while pending:
        cause = pending.pop()
        if not isinstance(cause, BaseException) or id(cause) in seen:
            continue
        yield cause
        seen.add(id(cause))
        held = [getattr(cause, name, None) for name in _HOLDERS]
        pending += [*cause.args, *held, cause.__cause__, cause.__context__]
