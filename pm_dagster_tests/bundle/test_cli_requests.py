"""The local workspace answers every recorded request of the Databricks CLI as one that satisfied it did."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import requests

from pm_dagster.sandbox.workspace import LocalWorkspace
from pm_dagster_tests.bundle.replay import Exchange, Replay, recorded

_PATIENCE_SECONDS = 60.0


@pytest.fixture
def replay() -> Iterator[Replay]:
    with LocalWorkspace() as workspace:
        for key in ("mdm-client-secret", "jfrog-token", "skid-token"):
            workspace.secrets.put("process-manager", key, f"value of {key}")
        with requests.Session() as session:
            yield Replay(workspace, session=session)


def _answer(replay: Replay, exchange: Exchange) -> requests.Response:
    answer = replay.send(exchange)
    deadline = time.monotonic() + _PATIENCE_SECONDS
    # The recorded client looked again until its run was over, and so does this one.
    while exchange.ends_a_run and answer.json()["state"]["life_cycle_state"] in ("PENDING", "RUNNING"):
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.1)
        answer = replay.send(exchange)
    return answer


def test_every_request_is_answered_as_recorded(replay: Replay) -> None:
    exchanges = recorded(replay.workspace.host)
    assert len(exchanges) == 165
    for exchange in exchanges:
        replay.check(exchange, _answer(replay, exchange))
    assert [each.path for each in replay.workspace.files.list("/Workspace/Users") if "1111" in each.path]
    assert replay.workspace.state.jobs() == []


def test_two_deployments_after_each_other_share_nothing(replay: Replay) -> None:
    """What destroy left behind must not be found by the next deployment."""
    for _ in range(2):
        replay.ids.clear()
        for exchange in recorded(replay.workspace.host)[:97]:
            replay.check(exchange, _answer(replay, exchange))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"status": 201}, "request 5"),
        ({"answer": {"object_type": "FILE"}}, "object_type"),
        ({"answer": {"colour": "red"}}, "lacks"),
        ({"answer": {"object_id": "1001"}}, "object_id"),
    ],
)
def test_the_comparison_can_fail(replay: Replay, change: dict[str, object], complaint: str) -> None:
    exchanges = recorded(replay.workspace.host)
    for exchange in exchanges[:4]:
        replay.check(exchange, _answer(replay, exchange))
    fifth = Exchange(**{**vars(exchanges[4]), **change})
    with pytest.raises(AssertionError, match=complaint):
        replay.check(fifth, replay.send(fifth))
