"""What each state of a run means."""

from __future__ import annotations

import pytest

from pm_dagster.dispatch.model import RunSnapshot, Standing


def run(life: str | None, result: str | None = None, **more: str) -> RunSnapshot:
    return RunSnapshot(7, 1, life, result, more.get("status"), more.get("code"))


@pytest.mark.parametrize(
    ("snapshot", "standing"),
    [
        (run("PENDING"), Standing.ACTIVE),
        (run("RUNNING"), Standing.ACTIVE),
        (run("RUNNING", "FAILED"), Standing.ACTIVE),
        (run("TERMINATING", "CANCELED"), Standing.ACTIVE),
        (run("BLOCKED"), Standing.ACTIVE),
        (run("QUEUED"), Standing.ACTIVE),
        (run("WAITING_FOR_RETRY"), Standing.ACTIVE),
        (run(None), Standing.ACTIVE),
        (run(None, "FAILED"), Standing.ACTIVE),
        (run(None, status="RUNNING"), Standing.ACTIVE),
        (run("TERMINATED", "SUCCESS"), Standing.SUCCEEDED),
        (run(None, status="TERMINATED", code="SUCCESS"), Standing.SUCCEEDED),
        (run("INTERNAL_ERROR", "FAILED"), Standing.REPAIRABLE),
        (run("INTERNAL_ERROR"), Standing.REPAIRABLE),
        (run("TERMINATED", "FAILED"), Standing.REPAIRABLE),
        (run("TERMINATED", "TIMEDOUT"), Standing.REPAIRABLE),
        (run("TERMINATED", "CANCELED"), Standing.REPAIRABLE),
        (run("TERMINATED", "SUCCESS_WITH_FAILURES"), Standing.REPAIRABLE),
        (run("TERMINATED", "UPSTREAM_FAILED"), Standing.REPAIRABLE),
        (run("TERMINATED", None), Standing.REPAIRABLE),
        (run("SKIPPED"), Standing.NEVER_RAN),
        (run("SKIPPED", "MAXIMUM_CONCURRENT_RUNS_REACHED"), Standing.NEVER_RAN),
        (run("TERMINATED", None, code="MAX_CONCURRENT_RUNS_EXCEEDED"), Standing.NEVER_RAN),
        (run("TERMINATED", None, code="MAX_JOB_QUEUE_SIZE_EXCEEDED"), Standing.NEVER_RAN),
    ],
)
def test_a_state_has_one_standing(snapshot: RunSnapshot, standing: Standing) -> None:
    assert snapshot.standing is standing


def test_the_latest_repair_is_the_last_of_the_history() -> None:
    assert RunSnapshot(7, 1, "TERMINATED", "FAILED", repair_ids=(5, 3)).latest_repair_id == 3
    assert RunSnapshot(7, 1, "TERMINATED", "FAILED").latest_repair_id is None


@pytest.mark.parametrize(
    ("snapshot", "words"),
    [
        (run("INTERNAL_ERROR", "FAILED"), "INTERNAL_ERROR/FAILED"),
        (run(None, status="QUEUED"), "QUEUED"),
        (run(None), "an unknown state"),
    ],
)
def test_the_words_are_the_workspaces(snapshot: RunSnapshot, words: str) -> None:
    assert snapshot.words == words
