"""A few more tries, and no more."""

from __future__ import annotations

import itertools
import logging
import threading

import pytest

from pm_dagster.errors import ConfigurationError, ControlPlaneUnavailable, Throttled, Unavailable
from pm_dagster.net.retry import Retry, exponential, retry


class _Failing:
    """Raises these in turn, then gives "done"."""

    def __init__(self, *errors: Exception) -> None:
        self._errors = list(errors)
        self.tries = 0

    def __call__(self) -> str:
        self.tries += 1
        if self._errors:
            raise self._errors.pop(0)
        return "done"


def test_two_failures_are_borne() -> None:
    slept: list[float] = []
    assert retry(_Failing(Unavailable("a"), Unavailable("b")), what="it", sleep=slept.append) == "done"
    assert slept == [0.5, 1.5]


def test_the_third_is_raised() -> None:
    work = _Failing(Unavailable("a"), Unavailable("b"), Unavailable("c"))
    with pytest.raises(Unavailable, match="c"):
        retry(work, what="it", sleep=lambda _: None)
    assert work.tries == 3


def test_what_cannot_get_better_is_raised_at_once() -> None:
    slept: list[float] = []
    with pytest.raises(ConfigurationError):
        retry(_Failing(ConfigurationError("a")), what="it", sleep=slept.append)
    assert slept == []


def test_an_error_that_the_policy_does_not_name_is_raised_at_once() -> None:
    work = _Failing(Unavailable("a"))
    with pytest.raises(Unavailable, match="a"):
        retry(work, Retry(on=ControlPlaneUnavailable), what="it", sleep=lambda _: None)
    assert work.tries == 1


def test_a_pause_that_is_asked_for_is_kept_up_to_a_limit() -> None:
    slept: list[float] = []
    work = _Failing(Throttled("a", retry_after=2.0), Throttled("b", retry_after=3600.0))
    assert retry(work, what="it", sleep=slept.append) == "done"
    assert slept == [2.0, 5.0]


def test_a_shorter_one_changes_nothing() -> None:
    slept: list[float] = []
    assert retry(_Failing(Throttled("a", retry_after=0.0)), what="it", sleep=slept.append) == "done"
    assert slept == [0.5]


def test_pauses_double() -> None:
    assert list(exponential(1.0, 4)) == [1.0, 2.0, 4.0, 8.0]


def test_no_try_begins_after_the_time_is_over() -> None:
    now = itertools.count(0.0, 3.0)
    work = _Failing(*[Unavailable("a")] * 5)
    with pytest.raises(Unavailable):
        retry(work, Retry(pauses=[1.0] * 5, within=4.0), what="it", sleep=lambda _: None, clock=lambda: next(now))
    assert work.tries == 2


def test_a_stop_event_ends_the_pauses_and_not_the_tries() -> None:
    stop = threading.Event()
    stop.set()
    work = _Failing(*[Unavailable("a")] * 2)
    assert retry(work, Retry(pauses=[60.0, 60.0], longest_pause=60.0), what="it", sleep=stop.wait) == "done"


def test_each_further_try_is_logged_with_the_kind_of_the_error_alone(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "pm_dagster.net.retry"):
        retry(_Failing(Unavailable("a s3cret")), what="reading the vault", sleep=lambda _: None)
    (record,) = caplog.records
    assert record.getMessage() == "retrying"
    found = {"what": "reading the vault", "attempt": 2, "pause": 0.5, "error": "Unavailable"}
    assert record.__dict__["fields"] == found
