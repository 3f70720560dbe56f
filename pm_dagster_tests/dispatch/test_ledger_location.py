"""When a ledger asks whether it was moved or copied, and when it does not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pm_dagster.dispatch.ledger_location import THIS_MACHINE, Place, answered_already, difference, normalised_hosts

_MADE = Place("orders", ("db1.example.com",), "7300", "00000001")


@pytest.mark.parametrize(
    ("now", "known"),
    [
        (_MADE, ()),
        # Failed over, or restored in place: the same host leads to a new timeline.
        (replace(_MADE, timeline="00000002"), ()),
        # Another name, a pooler, a socket: the same server on the same timeline.
        (replace(_MADE, hosts=("pooler.example.com",)), ()),
        (replace(_MADE, hosts=(THIS_MACHINE,)), ()),
        # Failed over, and reached through the pooler as ever.
        (replace(_MADE, hosts=("pooler.example.com",), timeline="00000002"), ("pooler.example.com",)),
        # Several hosts, one of which is known.
        (replace(_MADE, hosts=("db1.example.com", "db2.example.com"), timeline="00000003"), ()),
        # What may not be read cannot differ.
        (replace(_MADE, system=None), ()),
        (replace(_MADE, timeline=None, hosts=("other",)), ()),
        (replace(_MADE, system=None, timeline=None, hosts=("other",)), ()),
    ],
)
def test_the_same_place_asks_nothing(now: Place, known: tuple[str, ...]) -> None:
    assert not difference(_MADE, now, known)
    assert not difference(now, _MADE, _MADE.hosts)


@pytest.mark.parametrize(
    ("now", "why"),
    [
        (replace(_MADE, system="7301"), "another server"),
        (replace(_MADE, system="7301", hosts=("db9",), timeline="00000001"), "another server"),
        (replace(_MADE, database="orders_copy"), "another database"),
        (replace(_MADE, hosts=("restored.example.com",), timeline="00000002"), "another host"),
        (replace(_MADE, system=None, hosts=("restored.example.com",), timeline="00000002"), "another host"),
    ],
)
def test_another_place_asks(now: Place, why: str) -> None:
    assert why in difference(_MADE, now)
    assert why in difference(_MADE, now, ("unrelated",))


@pytest.mark.parametrize(
    ("configured", "hosts"),
    [
        ("", (THIS_MACHINE,)),
        ("localhost", (THIS_MACHINE,)),
        ("127.0.0.1", (THIS_MACHINE,)),
        ("127.9.9.9,::1,/var/run/postgresql,@abstract", (THIS_MACHINE,)),
        ("[::1]", (THIS_MACHINE,)),
        ("DB1.Example.COM.", ("db1.example.com",)),
        ("b, a ,b", ("a", "b")),
        ("10.0.0.7", ("10.0.0.7",)),
    ],
)
def test_hosts_are_compared_by_one_form(configured: str, hosts: tuple[str, ...]) -> None:
    assert normalised_hosts(configured) == hosts


def test_what_is_recorded_needs_no_answer() -> None:
    assert answered_already(_MADE, _MADE)
    assert answered_already(_MADE, replace(_MADE, timeline="00000002"))
    assert not answered_already(_MADE, replace(_MADE, hosts=("a cold copy",)))
    assert not answered_already(_MADE, replace(_MADE, database="copy"))


def test_a_place_is_told_with_what_is_known_of_it() -> None:
    assert _MADE.words == "database orders on db1.example.com (server 7300, timeline 00000001)"
    assert Place("d", ()).words == "database d on an unknown host"
