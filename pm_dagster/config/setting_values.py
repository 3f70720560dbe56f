"""Values of settings out of the texts of environment variables.

Each reader takes a text and raises ValueError that says what was expected. ``settings`` says which setting takes which.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

_LOWEST_RATE, _HIGHEST_RATE = 0.01, 10_000
#: White space, and what has no width: a byte order mark, a zero-width space, a word joiner, marks of direction.
_UNSEEN = r"[\s\x00-\x1f\ufeff\u200b\u2060\u00ad\u200e\u200f]"
_AT_THE_ENDS = re.compile(rf"\A{_UNSEEN}+|{_UNSEEN}+\Z")
#: In the middle of a name nobody could tell these from nothing, or from a blank.
_INSIDE = re.compile(r"[\x00-\x1f\x7f-\xa0\u202f\ufeff\u200b\u2060\u00ad\u200e\u200f]")
_QUOTES = "\"'`\u201c\u201d\u201e\u2018\u2019\u201a\u00ab\u00bb"
_CLOSING = dict(
    zip("\"'`\u201c\u201e\u2018\u201a\u00ab\u00bb", "\"'`\u201d\u201c\u2019\u2018\u00bb\u00ab", strict=True)
)
_NOT_FILLED_IN = re.compile(r"\$\{[^{}]*\}|\$[A-Za-z_]\w*|%[A-Za-z_]\w*%")
_ZONE_NAME = re.compile(r"[A-Za-z]+|[A-Za-z_]+(/[A-Za-z0-9_+-]+)+")
_QUOTED = (
    "it has quotation marks around it, which the file that it comes from does not take away: write it without them"
)


def trimmed(text: str) -> str:
    """Without what cannot be seen at its ends, where it can mean nothing: blanks, line ends, a byte order mark."""
    return _AT_THE_ENDS.sub("", text)


def quoted(text: str) -> bool:
    """True when the whole is between quotation marks that belong together."""
    return len(text) > 1 and _CLOSING.get(text[0]) == text[-1]


def demand_bare(text: str) -> None:
    """Raise ValueError for a host, a token or a word with the marks that other tools write around a value."""
    if not text:
        message = "it is blank: set it to a value, or not at all"
        raise ValueError(message)
    if text[0] in _QUOTES or text[-1] in _QUOTES:
        raise ValueError(_QUOTED)
    if _NOT_FILLED_IN.fullmatch(text):
        message = "it still has the placeholder of another variable: write the value"
        raise ValueError(message)


def demand_exact(text: str) -> None:
    """Raise ValueError for a name or status that is compared as it is, and has what nobody sees or means in it."""
    demand_bare(trimmed(text))
    if trimmed(text) != text:
        message = "it begins or ends with a blank or another invisible character: write it without"
        raise ValueError(message)
    if _INSIDE.search(text):
        message = "it has an invisible character in it, or one that looks like a blank: write it without"
        raise ValueError(message)
    if " #" in text:
        message = "it has a comment behind it, which the file that it comes from does not take away: write it without"
        raise ValueError(message)


def exact(text: str) -> str:
    """A name or a status. Raises ValueError."""
    demand_exact(text)
    return text


def names(text: str) -> tuple[str, ...]:
    """Names separated by commas. Raises ValueError."""
    found = tuple(trimmed(name) for name in text.split(",") if trimmed(name))
    for name in found:
        _demand_exact_part(name)
    return found


def _demand_exact_part(name: str) -> None:
    try:
        demand_exact(name)
    except ValueError as error:
        message = f"in {name!r}: {error}"
        raise ValueError(message) from None


def pairs(text: str) -> tuple[tuple[str, str], ...]:
    """Pairs PARAMETER=column, separated by commas. Raises ValueError."""
    parts = [part.partition("=") for part in names(text)]
    for name, _, column in parts:
        for part in filter(None, (name.strip(), column.strip())):
            _demand_exact_part(part)
    if any(not name.strip() or not column.strip() for name, _, column in parts):
        message = "expected PARAMETER=column, separated by commas"
        raise ValueError(message)
    given = [name.strip() for name, _, _ in parts]
    if len(set(given)) < len(given):
        message = "a parameter stands twice"
        raise ValueError(message)
    return tuple((name.strip(), column.strip()) for name, _, column in parts)


def time_zone(text: str) -> str:
    """The name of a time zone; whether the database knows it is for the database to say. Raises ValueError.

    None like UTC+2 or -03:00: databases read the first against its meaning, as west of Greenwich.
    """
    if not _ZONE_NAME.fullmatch(text):
        message = "expected the name of a time zone, such as Europe/Berlin or UTC"
        raise ValueError(message)
    return text


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
