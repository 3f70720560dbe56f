"""The implementations that each contract of the control plane runs on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pm_dagster_tests.contracts.in_memory_world import InMemoryWorld
from pm_dagster_tests.contracts.worlds import World
from pm_dagster_tests.postgres.world import PostgresWorld

#: Where the fake is simpler than the promise; each that it learns to keep can leave this list.
_FAKE_IS_SIMPLER = {
    "test_waiting_shows_rows_oldest_first_up_to_the_limit": "it keeps the order of insertion",
    "test_a_sent_row_of_a_dead_dispatcher_is_taken_over_not_claimed_anew": "SENDING is not yet ambiguous",
    "test_resume_gives_ours_as_they_stand_and_not_anothers": "an unknown id is a KeyError",
    "test_an_intent_for_a_row_that_left_waiting_is_withdrawn": "the entry stays open",
    "test_the_generation_rises_after_a_withdrawal": "the entry stays open",
    "test_a_deferred_row_comes_back_only_after_its_time": "backing_off is not counted",
    "test_an_unresolved_row_with_a_pause_is_taken_over_only_after_it": "take_over does not look at the pause",
    "test_refused_rows_are_marked_failed_with_the_reason": "closed refusals are counted as quarantined",
    "test_another_dispatchers_row_cannot_be_refused": "refuse does not look at the owner",
    "test_the_backlog_counts_what_a_dispatch_would_take": "in_hand is not counted",
}


@pytest.fixture(params=["fake", "postgres"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """A control plane with its owner's side."""
    simpler = _FAKE_IS_SIMPLER.get(request.node.originalname) if request.param == "fake" else None
    if simpler:
        request.applymarker(pytest.mark.xfail(reason=f"the fake is simpler: {simpler}", strict=False))
    made: World = InMemoryWorld() if request.param == "fake" else PostgresWorld(request.getfixturevalue("database_url"))
    yield made
    made.leave()
