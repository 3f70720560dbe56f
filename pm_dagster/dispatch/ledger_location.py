"""Where a ledger is, and whether that is another place than the one where it was made: restored, copied or moved.

A copied or restored ledger has the identity of its original, of which idempotency tokens are made. Two databases that
dispatch with one identity against the same workspace would take each other's runs for their own.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

#: What every loopback address, socket and missing host is called: one server has many of them.
THIS_MACHINE = "this machine"
_LOOPBACK_NAMES = ("", "localhost", "localhost.localdomain", "localhost4", "localhost6", "::1", "0.0.0.0", "::")  # noqa: S104 no server listens here


class Answer(StrEnum):
    """What the operator says about a ledger that is in another place than the one where it was made."""

    #: The original is no longer used; this ledger replaces it.
    MOVED = "moved"
    #: The original stays in use; this ledger gets an identity of its own.
    COPY = "copy"


@dataclass(frozen=True)
class Place:
    """Where a ledger is.

    Attributes:
        database: The database's name.
        hosts: The configured hosts, normalised and sorted.
        system: The server's own identifier; None where our user may not read it.
        timeline: The branch of the server's history; None where our user may not read it.
    """

    database: str
    hosts: tuple[str, ...]
    system: str | None = None
    timeline: str | None = None

    @property
    def words(self) -> str:
        """The place in words."""
        more = [f"server {self.system}"] if self.system else []
        more += [f"timeline {self.timeline}"] if self.timeline else []
        where = f"database {self.database} on {' or '.join(self.hosts) or 'an unknown host'}"
        return where + (f" ({', '.join(more)})" if more else "")


def normalised_hosts(configured: str) -> tuple[str, ...]:
    """The hosts of a libpq ``host`` setting, which may be a list, as they are compared: sorted, each once."""
    return tuple(sorted({_normalised(host) for host in configured.split(",")}))


def _normalised(host: str) -> str:
    name = host.strip().strip("[]").rstrip(".").lower()
    if name in _LOOPBACK_NAMES or name.startswith(("/", "@", "127.", "::ffff:127.")):
        return THIS_MACHINE
    return name


def difference(made: Place, now: Place, known_hosts: Collection[str] = ()) -> str:
    """Why ``now`` may be another place than ``made``; empty when it is the same.

    A server that failed over to a new timeline keeps its host, and another name of the same server shows the same
    timeline: only a copy differs in both. What our user may not read counts as equal.

    Args:
        made: Where the ledger was made.
        now: Where it is.
        known_hosts: Hosts under which it was used since.
    """
    if made.system and now.system and made.system != now.system:
        return "it is another server"
    if made.database != now.database:
        return "it is another database"
    if made.timeline and now.timeline and made.timeline != now.timeline and not _share_a_host(made, now, known_hosts):
        return "it is another host, with another history of the same server"
    return ""


def answered_already(made: Place, now: Place) -> bool:
    """Whether there is nothing to answer: the ledger is where it is recorded to be, whatever its timeline."""
    return not difference(made, now) and _share_a_host(made, now, ())


def _share_a_host(made: Place, now: Place, known_hosts: Collection[str]) -> bool:
    return bool(set(now.hosts) & {*made.hosts, *known_hosts})
