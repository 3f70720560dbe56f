"""A few more tries, and no more."""

from __future__ import annotations

import pytest

from pm_dagster.errors import ConfigurationError, Throttled, Unavailable
from pm_dagster.net.retry import patiently


class _Stumbling:
    """Raises these in turn, then gives "done"."""

    def __init__(self, *errors: Exception) -> None:
        self._errors = list(errors)

    def __call__(self) -> str:
        if self._errors:
            raise self._errors.pop(0)
        return "done"


def test_two_failures_are_borne() -> None:
    slept: list[float] = []
    assert patiently(_Stumbling(Unavailable("a"), Unavailable("b")), sleep=slept.append) == "done"
    assert slept == [0.5, 1.5]


def test_the_third_is_raised() -> None:
    with pytest.raises(Unavailable, match="c"):
        patiently(_Stumbling(Unavailable("a"), Unavailable("b"), Unavailable("c")), sleep=lambda _: None)


def test_what_cannot_get_better_is_raised_at_once() -> None:
    slept: list[float] = []
    with pytest.raises(ConfigurationError):
        patiently(_Stumbling(ConfigurationError("a")), sleep=slept.append)
    assert slept == []


def test_a_pause_that_is_asked_for_is_kept_up_to_a_limit() -> None:
    slept: list[float] = []
    work = _Stumbling(Throttled("a", retry_after=0.0), Throttled("b", retry_after=3600.0))
    assert patiently(work, sleep=slept.append) == "done"
    assert slept == [0.0, 5.0]
