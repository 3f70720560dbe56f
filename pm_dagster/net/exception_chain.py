"""The exceptions behind an exception of a library, wherever the library keeps them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

#: Where azure-core and urllib3 keep an exception beside Python's own chain.
_HOLDERS = ("inner_exception", "reason")


def exception_chain(error: BaseException) -> Iterator[BaseException]:
    """The exception itself and each one that it holds as an argument, reason, cause or context, each once."""
    seen: set[int] = set()
    pending: list[Any] = [error]
    while pending:
        found = pending.pop()
        if not isinstance(found, BaseException) or id(found) in seen:
            continue
        yield found
        seen.add(id(found))
        held = [getattr(found, name, None) for name in _HOLDERS]
        pending += [*found.args, *held, found.__cause__, found.__context__]
