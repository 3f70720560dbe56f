"""The measurement of one row's walk counts what is there."""

from __future__ import annotations

from pm_dagster_tests.bench.walk import measure


def test_a_new_row_is_followed_from_the_command_to_the_database() -> None:
    (walk,) = measure(["cli-new"])
    assert walk.passes == 1
    assert 0 < walk.dispatch_files < walk.files < walk.functions < walk.moves
    # At least: who we are, the claim, the intent, the answer, the closing.
    assert walk.transactions >= 5
    # At least the one that makes the call.
    assert walk.threads >= 1
