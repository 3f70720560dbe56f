"""Errors as values: an op hands what it learned to the next one, pickled."""

from __future__ import annotations

import pickle

import pytest

from pm_dagster.errors import Kind, ProcessManagerError, Refused, Throttled, WorkspaceUnavailable

_ERRORS: tuple[ProcessManagerError, ...] = (
    Refused("HTTP 400 no", status=400, error_code="INVALID_PARAMETER_VALUE", kind=Kind.NAMED),
    Throttled("HTTP 429", retry_after=2.5),
    WorkspaceUnavailable("cannot connect", maybe_applied=False, status=None),
)


@pytest.mark.parametrize("error", _ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_is_the_same_after_it_was_stored(error: ProcessManagerError) -> None:
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 it is our own
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))
