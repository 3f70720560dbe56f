"""The dispatch as a state machine: many examples in memory, few on real servers, and the long forms by chance."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator

import pytest

from pm_dagster_tests.chaos.records import record
from pm_dagster_tests.model.memory_world import MemoryWorld
from pm_dagster_tests.model.oracle import Breach
from pm_dagster_tests.model.real_world import RealServers, real_servers
from pm_dagster_tests.model.search import Search
from pm_dagster_tests.model.variants import VARIANTS, Variant
from pm_dagster_tests.model.worlds import ModelWorld

_SUITE = "model"
#: So many examples are enough for every variant by any number that was tried.
_MOST_FOR_A_VARIANT = 4_000


@pytest.fixture
def servers(database_url: str) -> Iterator[RealServers]:
    """A database and a workspace."""
    with real_servers(database_url) as made:
        yield made


def _holds(name: str, make: Callable[[], ModelWorld], most: int, number: int | None = None) -> None:
    search = Search(make)
    search.run(most, number=number)
    record(_SUITE, name, {"breaches": 0}, {"examples": search.examples, "steps": search.steps})


def _chance() -> int:
    number = random.SystemRandom().randrange(2**32)
    sys.stdout.write(f"the examples have the number {number}\n")
    return number


def test_every_invariant_holds_in_memory() -> None:
    _holds("in memory, always the same", MemoryWorld, 200)


def test_every_invariant_holds_on_real_servers(servers: RealServers) -> None:
    _holds("on Postgres and the local workspace, always the same", servers.world, 8)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_a_broken_variant_is_caught(variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    _catch(variant, variant.number, monkeypatch)


@pytest.mark.chaos
def test_every_invariant_holds_in_memory_for_long() -> None:
    _holds("in memory, by chance", MemoryWorld, 3_000, _chance())


@pytest.mark.chaos
def test_every_invariant_holds_on_real_servers_for_long(servers: RealServers) -> None:
    _holds("on Postgres and the local workspace, by chance", servers.world, 120, _chance())


def _catch(variant: Variant, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    variant.take_out(monkeypatch)
    search = Search(MemoryWorld)
    with pytest.raises(Breach) as caught:
        search.run(_MOST_FOR_A_VARIANT, number=number, shrink=False)
    assert caught.value.invariant in variant.breaks, str(caught.value)
    counts = {"caught": 1, "invariant": caught.value.invariant, "examples": search.examples, "steps": search.steps}
    record(f"{_SUITE} variants", variant.name, counts, note=str(caught.value)[:200])
