"""Rules for what goes wrong on purpose: at which endpoint, before or after the effect, how, and how often.

``answers.py`` carries a fault out.
"""

from __future__ import annotations

import itertools
import threading
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any, cast

KINDS = ("status", "reset", "fin", "hang", "truncated", "html", "text")
MOMENTS = ("before", "after")
_STATUSES = range(100, 600)


@dataclass
class Fault:
    """One rule. It lets ``skip`` matching requests pass, then hits ``count`` (None: for ever).

    ``endpoint`` is a name such as ``run-now`` or ``runs/repair``, or a pattern with ``*``; ``match`` a piece of text
    that path or body must contain. ``hang`` waits ``seconds``, up to ``jitter`` more or less by chance. It then goes on
    as if nothing had happened, or cuts the connection when ``drop`` is set; before the effect, going on means that the
    effect comes late.
    """

    endpoint: str
    kind: str
    when: str = "before"
    status: int = 503
    code: str = "TEMPORARILY_UNAVAILABLE"
    message: str = "The service is temporarily unavailable."
    headers: dict[str, str] = field(default_factory=dict)
    body: str | None = None
    seconds: float = 1.0
    jitter: float = 0.0
    drop: bool = False
    match: str = ""
    skip: int = 0
    count: int | None = 1
    fault_id: int = 0
    seen: int = 0
    fired: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind is one of {list(KINDS)}")
        if self.when not in MOMENTS:
            raise ValueError(f"when is one of {list(MOMENTS)}")
        if self.status not in _STATUSES:
            raise ValueError("status is an HTTP status")
        self._check_types()

    def _check_types(self) -> None:
        # The fields may come from JSON, where nobody checked them.
        skip, count = cast("tuple[object, object]", (self.skip, self.count))
        times: list[object] = [self.seconds, self.jitter]
        if (
            not isinstance(skip, int)
            or not isinstance(count, int | None)
            or not all(isinstance(each, int | float) for each in times)
        ):
            raise TypeError("skip and count are whole numbers, seconds and jitter are numbers; only count may be null")
        texts: list[object] = [self.message, self.code, self.match, *self.headers.values()]
        if not all(isinstance(each, str) for each in texts):
            raise TypeError("message, code, match and headers are texts")


class Faults:
    """The rules in force; the first that wants a request gets it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._rules: list[Fault] = []

    def add(self, endpoint: str, kind: str, when: str = "before", **details: Any) -> Fault:  # noqa: ANN401  # the fields of Fault
        """Put a rule in force; see ``Fault`` for the details."""
        fault = Fault(endpoint=endpoint, kind=kind, when=when, **details)
        with self._lock:
            fault.fault_id = next(self._numbers)
            self._rules.append(fault)
        return fault

    def clear(self) -> None:
        """Take all rules out of force."""
        with self._lock:
            self._rules.clear()

    def rules(self) -> list[dict[str, Any]]:
        """The rules with how often each was seen and fired."""
        with self._lock:
            return [asdict(each) for each in self._rules]

    def take(self, endpoint: str, when: str, text: str) -> Fault | None:
        """The rule that hits this request at this moment, if any; it counts as fired."""
        with self._lock:
            for rule in self._rules:
                if rule.when != when or not fnmatchcase(endpoint, rule.endpoint) or rule.match not in text:
                    continue
                rule.seen += 1
                if rule.seen > rule.skip and (rule.count is None or rule.fired < rule.count):
                    rule.fired += 1
                    return rule
            return None
