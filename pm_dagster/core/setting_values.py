"""Values of settings out of the texts of environment variables.

Put here: readers, which raise ValueError saying what was expected. Keep out: which setting takes which (``settings``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_LOWEST_RATE, _HIGHEST_RATE = 0.01, 10_000


def names(text: str) -> tuple[str, ...]:
    """Names separated by commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def pairs(text: str) -> tuple[tuple[str, str], ...]:
    """Pairs PARAMETER=column, separated by commas. Raises ValueError."""
    parts = [part.partition("=") for part in names(text)]
    if any(not name.strip() or not column.strip() for name, _, column in parts):
        message = "expected PARAMETER=column, separated by commas"
        raise ValueError(message)
    given = [name.strip() for name, _, _ in parts]
    if len(set(given)) < len(given):
        message = "a parameter stands twice"
        raise ValueError(message)
    return tuple((name.strip(), column.strip()) for name, _, column in parts)


def switch(text: str) -> bool:
    """A word for yes or no. Raises ValueError."""
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if text.strip().lower() not in words:
        message = "expected true or false"
        raise ValueError(message)
    return words[text.strip().lower()]


def between(low: float, high: float, kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """Beyond the bounds no setting makes sense, and sums with it leave what clocks, threads or Postgres can hold."""

    def read(text: str) -> Any:  # noqa: ANN401
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            what = "whole number" if kind is int else "number"
            message = f"expected a {what} from {_plain(low)} to {_plain(high)}"
            raise ValueError(message)
        return value

    return read


def rate(text: str) -> float:
    """A rate, or 0 for none: slower than one call in 100 s would be a standstill."""
    value: float = between(0, _HIGHEST_RATE, float)(text)
    if 0 < value < _LOWEST_RATE:
        message = f"expected 0 or a number from {_plain(_LOWEST_RATE)} to {_plain(_HIGHEST_RATE)}"
        raise ValueError(message)
    return value


def _plain(number: float) -> str:
    return f"{number:f}".rstrip("0").rstrip(".")


def one_of(*words: str) -> Callable[[str], str]:
    """A reader of these words only."""

    def read(text: str) -> str:
        if text not in words:
            message = f"expected one of {', '.join(words)}"
            raise ValueError(message)
        return text

    return read
