"""Answers of the Jobs API that no Jobs API should give: the adapter gives a valid value, or an error of our tree."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pm_dagster.databricks.runs import SdkRuns
from pm_dagster.dispatch.model import RunSnapshot
from pm_dagster.dispatch.waiting_job import INT64_MAX
from pm_dagster.errors import ForeignAnswer, ProcessManagerError, Refused, WorkspaceUnavailable
from pm_dagster_tests.hostile.adapter_calls import CALLS, RUN
from pm_dagster_tests.hostile.raw_server import TOKEN, RawServer, answer, json_answer


def _usable(value: object) -> bool:
    """Whether an adapter's value is one that the ledger can hold."""
    if isinstance(value, list):
        return all(_usable(each) for each in value)
    if isinstance(value, RunSnapshot):
        ids = [value.run_id, *value.repair_ids]
        return value.run_id == 7 and all(type(each) is int and 0 < each <= INT64_MAX for each in ids)
    if isinstance(value, int):
        return type(value) is int and 0 < value <= INT64_MAX
    return value is None or isinstance(value, str)


def _outcome(call: str, runs: SdkRuns) -> str:
    """The kind of error, or "" for a usable value."""
    caught: ProcessManagerError | None = None
    value: object = None
    try:
        value = CALLS[call](runs)
    except ProcessManagerError as error:
        caught = error
    assert _usable(value), value
    assert TOKEN not in str(caught)
    assert len(str(caught)) < 1000
    return type(caught).__name__ if caught else ""


_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 2**53 + 1, INT64_MAX, INT64_MAX + 1, 2**64, 10**30]),
    st.floats(),
    st.text(st.characters(categories=None), max_size=20),
    st.sampled_from(["", "7", "\x00", "\ud800", "x" * 5000, "RUNNING", "ORIGINAL", "REPAIR", "SUCCESS"]),
)
_KEYS = st.sampled_from(
    ["run_id", "repair_id", "id", "type", "state", "status", "life_cycle_state", "result_state", "state_message",
     "termination_details", "code", "repair_history", "runs", "tasks", "job_parameters", "name", "value", "settings",
     "userName", "run_page_url", "job_id", "error_code", "message", "iterations"]
)  # fmt: skip
_JSON = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS, inner, max_size=5), max_leaves=12
)
_STATES = st.sampled_from([RUN["state"], {"life_cycle_state": "RUNNING"}, {}, None, {"life_cycle_state": "NEW"}])
_RUNS = st.fixed_dictionaries(
    {"run_id": st.just(7) | _SCALARS, "state": _STATES | _JSON},
    optional={
        "repair_history": st.lists(st.fixed_dictionaries({"id": _SCALARS, "type": _SCALARS}), max_size=3) | _JSON,
        "job_parameters": st.just([{"name": "A", "value": "b"}]) | _JSON,
        "status": _JSON,
        "job_id": _SCALARS,
    },
)
_ANSWERS = _RUNS | st.fixed_dictionaries({"runs": st.lists(_RUNS, max_size=2)}) | st.dictionaries(_KEYS, _JSON) | _JSON
_STATUSES = st.sampled_from(["200 OK", "200 OK", "200 OK", "400 Bad Request", "404 Not Found", "500 Oops", "429 Slow"])


def _fuzz(server: RawServer, call: str, value: object, status: str) -> None:
    server.says(json_answer(value, status))
    _outcome(call, server.runs())


@given(st.sampled_from(sorted(CALLS)), _ANSWERS, _STATUSES)
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_json_is_a_usable_value_or_an_error_of_ours(
    server: RawServer, call: str, value: object, status: str
) -> None:
    _fuzz(server, call, value, status)


@pytest.mark.chaos
@given(st.sampled_from(sorted(CALLS)), _ANSWERS, _STATUSES)
@settings(max_examples=5_000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_json_for_long(server: RawServer, call: str, value: object, status: str) -> None:
    _fuzz(server, call, value, status)


@given(st.sampled_from(sorted(CALLS)), st.binary(max_size=200), _STATUSES, st.sampled_from(
    ["X: y", "Content-Type: text/html; charset=undefined", "Content-Type: text/html; charset=idna",
     "Content-Encoding: gzip", "Content-Encoding: deflate", "Content-Encoding: zzz", "Transfer-Encoding: chunked",
     "Content-Length: 99999", "Retry-After: 1e999", "Retry-After: Wed, 99 Foo 99999", "Location: http://example.com/"]
))  # fmt: skip
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_a_usable_value_or_an_error_of_ours(
    server: RawServer, call: str, body: bytes, status: str, header: str
) -> None:
    server.says(answer(body, status, header))
    _outcome(call, server.runs())


@pytest.mark.parametrize(
    "body",
    [
        b'{"run_id": 1, "run_id": 9223372036854775808, "repair_id": 9223372036854775808}',
        b'{"run_id": 1e18, "repair_id": 1e18}',
        b'{"run_id": NaN, "repair_id": Infinity}',
        b'{"run_id": null, "repair_id": null}',
        b'{"run_id": "7", "repair_id": "7"}',
        b'{"run_id": ' + b"9" * 5000 + b', "repair_id": 1.0}',
        b"[" * 100_000,
        b'{"run_id":' + b"[" * 5000 + b"]" * 5000 + b"}",
        '{"run_id": "\u0661", "repair_id": "\u0661"}'.encode("utf-16"),
        b"\xff\xfe\x00",
        b"<html>Sign in</html>",
    ],
    ids=lambda body: repr(body[:40]),
)
def test_a_start_or_repair_without_a_usable_id_may_have_taken_effect(server: RawServer, body: bytes) -> None:
    server.says(answer(body))
    for call in ("repair", "start"):
        with pytest.raises(WorkspaceUnavailable) as caught:
            CALLS[call](server.runs())
        assert caught.value.maybe_applied


@pytest.mark.parametrize("state", [{}, {"state": None}, {"status": None}, {"state": None, "status": None}])
def test_a_run_without_a_state_is_not_taken_for_one_under_way(server: RawServer, state: dict[str, object]) -> None:
    server.says(json_answer({"run_id": 7, **state}))
    with pytest.raises(WorkspaceUnavailable, match="without the run's state"):
        server.runs().look_up(7)


@pytest.mark.parametrize("run_id", [8, "7", 7.0, True, None, -7, 2**63 + 7])
def test_an_answer_about_another_run_says_nothing(server: RawServer, run_id: object) -> None:
    server.says(json_answer({**RUN, "run_id": run_id}))
    with pytest.raises(WorkspaceUnavailable):
        server.runs().look_up(7)


@pytest.mark.parametrize("repair", [2**63, "5", 5.5, True, [5], -5])
def test_a_repair_that_cannot_be_named_leaves_the_row_alone(server: RawServer, repair: object) -> None:
    server.says(json_answer({**RUN, "repair_history": [{"type": "REPAIR", "id": repair}]}))
    with pytest.raises(WorkspaceUnavailable):
        server.runs().look_up(7)


@pytest.mark.parametrize("charset", ["undefined", "idna", "rot13", "utf-7", "\x7f", "punycode", "mbcs"])
def test_an_error_page_in_a_charset_that_is_none_is_read_and_refuses_nothing(server: RawServer, charset: str) -> None:
    server.says(answer(b"<b>nein \xff</b>", "400 Bad Request", f"Content-Type: text/html; charset={charset}"))
    with pytest.raises(ForeignAnswer, match="nein"):
        server.runs().start(1, {}, "t")


def test_an_error_whose_fields_are_not_text(server: RawServer) -> None:
    for message in ({"a": [1]}, [None], 5, True, "\ud800\x00\x1b[31m"):
        server.says(json_answer({"error_code": message, "message": message}, "400 Bad Request"))
        with pytest.raises(ProcessManagerError) as caught:
            server.runs().start(1, {}, "t")
        assert isinstance(caught.value, Refused if isinstance(message, str) else ForeignAnswer)
