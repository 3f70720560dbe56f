"""The dispatch as a state machine: many examples in memory, few on real servers, and the long forms by chance."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator

import pytest

from pm_dagster_tests.chaos.records import record
from pm_dagster_tests.model.harness import Harness
from pm_dagster_tests.model.in_memory_harness import InMemoryHarness
from pm_dagster_tests.model.machine import DispatchMachine
from pm_dagster_tests.model.oracle import Breach
from pm_dagster_tests.model.real_harness import RealServers, real_servers
from pm_dagster_tests.model.search import Search
from pm_dagster_tests.model.stories import STORIES, told
from pm_dagster_tests.model.variants import VARIANTS, Variant

_SUITE = "model"
#: So many examples are enough for every variant by any number that was tried.
_MOST_FOR_A_VARIANT = 4_000


@pytest.fixture
def servers(ledger_url: str) -> Iterator[RealServers]:
    """A database and a workspace."""
    with real_servers(ledger_url) as made:
        yield made


def _holds(name: str, make: Callable[[], Harness], most: int, number: int | None = None) -> None:
    search = Search(make)
    search.run(most, number=number)
    record(_SUITE, name, {"breaches": 0}, {"examples": search.examples, "steps": search.steps})


def _chance() -> int:
    number = random.SystemRandom().randrange(2**32)
    sys.stdout.write(f"the examples have the number {number}\n")
    return number


def test_every_invariant_holds_in_memory() -> None:
    _holds("in memory, always the same", InMemoryHarness, 200)


def test_every_invariant_holds_on_real_servers(servers: RealServers) -> None:
    _holds("on Postgres and the local workspace, always the same", servers.harness, 8)


def test_every_story_ends_well(servers: RealServers) -> None:
    for story in STORIES:
        told(story, DispatchMachine(servers.harness()))


@pytest.mark.parametrize("variant", [each for each in VARIANTS if not each.story], ids=lambda variant: variant.name)
def test_a_broken_variant_is_found(variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the machine, in the core, which is the same on the fakes."""
    variant.take_out(monkeypatch)
    search = Search(InMemoryHarness)
    with pytest.raises(Breach) as caught:
        search.run(_MOST_FOR_A_VARIANT, number=variant.number, shrink=False)
    _caught(variant, caught.value, search.examples, search.steps)


@pytest.mark.parametrize("variant", [each for each in VARIANTS if each.story], ids=lambda variant: variant.name)
def test_a_broken_variant_is_shown(variant: Variant, servers: RealServers, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a story, on real servers, where the rule is."""
    assert variant.story is not None
    variant.take_out(monkeypatch)
    machine = DispatchMachine(servers.harness())
    with pytest.raises(Breach) as caught:
        told(variant.story, machine)
    _caught(variant, caught.value, 1, machine.oracle.steps)


@pytest.mark.chaos
def test_every_invariant_holds_in_memory_for_long() -> None:
    _holds("in memory, by chance", InMemoryHarness, 3_000, _chance())


@pytest.mark.chaos
def test_every_invariant_holds_on_real_servers_for_long(servers: RealServers) -> None:
    _holds("on Postgres and the local workspace, by chance", servers.harness, 120, _chance())


def _caught(variant: Variant, breach: Breach, examples: int, steps: int) -> None:
    assert breach.invariant in variant.breaks, str(breach)
    counts = {"caught": 1, "invariant": breach.invariant, "examples": examples, "steps": steps}
    record(f"{_SUITE} variants", variant.name, counts, note=str(breach)[:200])
