"""Where a ledger stands, and whether it woke up elsewhere: restored, copied or moved.

Put here: the comparison of two places. Keep out: how a place is read from a database.

A copied or restored ledger brings along the identity that idempotency tokens are made of. Two databases that dispatch
with one identity against the same workspace would take each other's runs for their own.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

#: What every loopback address, socket and missing host is called: one server has many of them.
THIS_MACHINE = "this machine"
_LOOPBACK_NAMES = ("", "localhost", "localhost.localdomain", "localhost4", "localhost6", "::1", "0.0.0.0", "::")  # noqa: S104 no server listens here


class Answer(StrEnum):
    """What the operator says of a ledger that stands elsewhere than it was made."""

    #: The original is not used any more: this one goes on in its place.
    MOVED = "moved"
    #: The original goes on: this one gets an identity of its own.
    COPY = "copy"


@dataclass(frozen=True)
class Place:
    """Where a ledger stands.

    ``system`` is the server's own identifier and ``timeline`` the branch of its history; both None where the user may
    not read them. ``hosts`` are the configured ones, normalised.
    """

    database: str
    hosts: tuple[str, ...]
    system: str | None = None
    timeline: str | None = None

    @property
    def words(self) -> str:
        """The place for people."""
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
    """Why ``now`` may be another place than ``made``, empty when it is the same one.

    ``known_hosts`` are those under which the ledger was used since. A server that failed over to a new timeline keeps
    its host, and another name of the same server shows the same timeline: only a copy has both anew. What may not be
    read cannot differ.
    """
    if made.system and now.system and made.system != now.system:
        return "it is another server"
    if made.database != now.database:
        return "it is another database"
    if made.timeline and now.timeline and made.timeline != now.timeline and not _meets(made, now, known_hosts):
        return "it is another host, with another history of the same server"
    return ""


def answered_already(made: Place, now: Place) -> bool:
    """Whether there is nothing to answer: the ledger stands where it is recorded to stand, whatever its timeline."""
    return not difference(made, now) and _meets(made, now, ())


def _meets(made: Place, now: Place, known_hosts: Collection[str]) -> bool:
    return bool(set(now.hosts) & {*made.hosts, *known_hosts})
