"""The rows of a pass: read and claimed in batches, the oldest first, before sending and while it goes on.

A batch is claimed when few rows are left that could make a call, and it is as large as the deciding thread can claim
without keeping the workers from their next calls. So the first call leaves early, and a pass of any length holds no
more rows than it can send soon. New runs and repairs are counted apart: their rates differ, and rows of one branch that
wait for their rate keep back none of the other.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from pm_dagster.dispatch.model import Call, Entry, EntryState, Outcome, RowOutcome, Work
from pm_dagster.dispatch.ports import ControlPlane
from pm_dagster.dispatch.waiting_job import Branch, RawRow, RefusedRow, WaitingJob, row_key, sort_rows, within
from pm_dagster.logs import fields

T = TypeVar("T")
_log = logging.getLogger(__name__)

#: So many rows are read at once. Each reading sorts all rows that wait, so it is to be rare. A row that was only read
#: is anybody's.
READ_AT_ONCE = 1000
#: A further reading asks for at least so many, where only few are missing.
_LEAST_READ = 64
#: So many rows may have been read and not claimed: enough to find those of one branch behind those of the other.
_MOST_READ_AHEAD = 10 * READ_AT_ONCE
#: So many rows may be claimed and undecided, most of them in the pause before another try.
_MOST_HELD = 2000
#: So long may a claim keep the deciding thread; the size of the next batch follows from how long the last one took.
_SECONDS_OF_A_CLAIM = 0.05
_LEAST_CLAIMED, _MOST_CLAIMED = 16, 256
#: How often it is looked whether enough rows are there.
_CHECK_SECONDS = 0.05
#: Whoever only looks at a row holds its lock for a moment, too: rows that could not be had are read again after it.
LOCK_SECONDS = 0.2
#: How often a lingering dispatch looks for rows; longer each time that it finds rows which it cannot have.
_PEEK_SECONDS, _LONGEST_PEEK_SECONDS = 1.0, 5.0
#: While rows are undecided it looks at least for so long: a call may take a minute. A refusal that waits for another
#: row's answer is decided at the end.
_LONGEST_CALL_SECONDS = 60.0
#: So many such readings in a row may bring nothing.
_MOST_FRUITLESS_READS = 3


@dataclass
class Claimed:
    """What a claim brought.

    Attributes:
        entries: The entries to work on: rows that were taken, and entries rescued from a dead dispatcher.
        refused: Rows that break their own rules; they are marked FAILED.
        rows: All rows that were looked at, in their order.
        missing: Jobs that could not be claimed: somebody else holds, took or changed them.
    """

    entries: list[Entry] = field(default_factory=list)
    refused: list[RefusedRow] = field(default_factory=list)
    rows: list[RawRow] = field(default_factory=list)
    missing: list[WaitingJob] = field(default_factory=list)

    @property
    def new(self) -> list[Entry]:
        """The entries that need a new run."""
        return [entry for entry in self.entries if entry.branch is Branch.NEW]

    @property
    def repair(self) -> list[Entry]:
        """The entries whose previous run is to be repaired."""
        return [entry for entry in self.entries if entry.branch is Branch.REPAIR]

    @property
    def sendable(self) -> int:
        """How many entries can be sent; one that was put off takes no place of another."""
        return sum(entry.state is not EntryState.DEFERRED for entry in self.entries)

    @property
    def rescued(self) -> int:
        """How many entries a dead dispatcher had left."""
        return sum(entry.rescued for entry in self.entries)

    def add(self, more: Claimed) -> None:
        """Take in what a later claim brought."""
        self.entries += more.entries
        self.refused += more.refused
        self.rows += more.rows
        self.missing += more.missing

    @property
    def counts(self) -> dict[str, int]:
        """How many rows were claimed, rescued, refused, and not to be had."""
        return {
            "new": len(self.new),
            "repair": len(self.repair),
            "rescued": self.rescued,
            "refused": len(self.refused),
            "missing": len(self.missing),
        }


class Asks(Protocol):
    """How the database is asked: at once, or again and again while it is away."""

    def __call__(self, what: str, ask: Callable[[], T]) -> T:
        """What ``ask`` gives; ``what`` is for the log."""


def at_once(what: str, ask: Callable[[], T]) -> T:  # noqa: ARG001 as Asks
    """Ask once."""
    return ask()


class Batches:
    """Takes the rows that wait, batch by batch, until none is left or the limit is reached.

    Args:
        control: Where the rows are.
        limit: The most rows to take.
        rows: The oldest waiting rows, where they were read elsewhere.
        ask: How the database is asked.
    """

    def __init__(
        self, control: ControlPlane, limit: int, rows: Sequence[RawRow] | None = None, ask: Asks = at_once
    ) -> None:
        self.ask = ask
        self._control = control
        self._room = limit
        self._fresh = True
        self._more = True
        #: Rows that were read and not claimed: their keys in the order of reading, and all rows of a key.
        self._lanes: dict[Branch, deque[tuple[int, int]]] = {branch: deque() for branch in Branch}
        self._ahead: dict[int, list[RawRow]] = {}
        self._without_key: list[RawRow] = []
        self._number = 0
        #: Rows that further readings leave out: claimed and undecided, and let go in this round; those of them that
        #: somebody else had.
        self._held: set[int] = set()
        self._let_go: set[int] = set()
        self._missed: set[int] = set()
        self._fruitless = 0
        if rows is not None:
            self._take_in(rows, min(limit, READ_AT_ONCE), limit)

    @property
    def exhausted(self) -> bool:
        """Whether no row can be taken any more, but those that somebody else had."""
        return self._room <= 0 or not (self._more or self._ahead or self._without_key)

    @property
    def held(self) -> int:
        """How many rows are claimed and undecided."""
        return len(self._held)

    def ahead(self) -> list[RawRow]:
        """The rows that were read and would have been taken."""
        keys = self._oldest(tuple(Branch), self._room)
        return [*self._without_key, *(row for key in keys for row in self._ahead[key])]

    def take(self, branches: Collection[Branch], most: int) -> Claimed:
        """Claim the next rows of these branches, and refuse those that break their own rules; at most ``most`` of them.

        It may bring fewer, also none while there are more.
        """
        most = min(most, self._room)
        if most <= 0:
            return Claimed()
        if self._more and sum(len(self._lanes[branch]) for branch in branches) < most:
            self._read(most)
        keys = self._oldest(branches, most)
        rows = self._without_key + [row for key in keys for row in self._ahead.pop(key)]
        self._without_key = []
        if not rows:
            return Claimed()
        claimed = self._claim(rows)
        self._room -= claimed.sendable
        self._held |= {entry.run_id for entry in claimed.entries if entry.state is not EntryState.DEFERRED}
        self._let_go |= set(keys) - self._held
        missed = {job.run_id for job in claimed.missing} - {row.run_id for row in claimed.refused}
        self._missed |= missed
        self._fruitless = 0 if claimed.entries else self._fruitless
        return claimed

    def look_again(self) -> bool:
        """Whether rows that somebody else held are read once more; they may only have been looked at."""
        if not self._missed or self._room <= 0 or self._fruitless >= _MOST_FRUITLESS_READS:
            return False
        self._let_go -= self._missed
        self._missed.clear()
        self._fruitless += 1
        self._more = True
        return True

    def look_anew(self) -> None:
        """Begin a new round: rows that were let go may be taken again, as by another dispatch."""
        self._let_go.clear()
        self._missed.clear()
        self._fruitless = 0
        self._more = True

    @property
    def full(self) -> bool:
        """Whether the limit is reached."""
        return self._room <= 0

    def hold(self, entries: Collection[Entry]) -> None:
        """Entries that were taken another way."""
        self._held |= {entry.run_id for entry in entries}

    def decided(self, outcome: RowOutcome) -> None:
        """How a row left the sending: one that still waits is not taken again in this round."""
        self._held.discard(outcome.entry.run_id)
        if outcome.outcome in (Outcome.DEFERRED, Outcome.WITHDRAWN):
            self._let_go.add(outcome.entry.run_id)

    def _read(self, wanted: int) -> None:
        """Read ahead, as far as that is allowed; a reading that gives fewer than it might has left nothing behind."""
        if self._fresh:
            most = min(self._room, READ_AT_ONCE)
            self._take_in(self.ask("read rows", lambda: self._control.waiting(most)), most, most)
            return
        missing = max(wanted, self._room - len(self._ahead))
        most = min(max(missing, _LEAST_READ), READ_AT_ONCE)
        if self._room > len(self._ahead) and len(self._ahead) + most <= _MOST_READ_AHEAD:
            seen = [*self._ahead, *self._held, *self._let_go]
            self._take_in(self.ask("read rows", lambda: self._control.waiting(most, seen)), most, most)

    def _take_in(self, rows: Sequence[RawRow], wanted: int, most: int) -> None:
        self._fresh = False
        rows = within(rows, most)
        self._more = sum(row_key(row) is not None for row in rows) >= wanted
        for row in rows:
            key = row_key(row)
            if key is None:
                self._without_key.append(row)
            elif key in self._ahead:
                self._ahead[key].append(row)
            else:
                self._ahead[key] = [row]
                self._number += 1
                branch = Branch.NEW if row.previous_run_id is None else Branch.REPAIR
                self._lanes[branch].append((self._number, key))

    def _oldest(self, branches: Collection[Branch], most: int) -> list[int]:
        """Take the keys of the oldest rows of these branches."""
        lanes = [self._lanes[branch] for branch in branches]
        keys: list[int] = []
        while len(keys) < most and any(lanes):
            keys.append(min((lane for lane in lanes if lane), key=lambda lane: lane[0]).popleft()[1])
        return keys

    def _claim(self, rows: list[RawRow]) -> Claimed:
        """Claim the rows and refuse those that break their own rules, as they are now."""
        jobs, refused = sort_rows(rows)
        if refused:
            self.ask("refuse rows", lambda: self._control.refuse(refused))
        entries = self.ask("claim rows", lambda: self._control.claim(jobs))
        had = {entry.run_id for entry in entries}
        missing = [job for job in jobs if job.run_id not in had]
        if missing:
            # A row that stands twice may have been read once, the other time being beyond the limit.
            by_key = {row_key(row): row for row in rows}
            doubtful = [RefusedRow(job.run_id, job.branch, "", by_key[job.run_id]) for job in missing]
            refused += self.ask("refuse rows", lambda: self._control.refuse(doubtful))
        return Claimed(entries, refused, list(rows), missing=missing)


class BatchFeed:
    """Feeds a stretch of sending with the rows of ``batches`` (see ``worker.Feed``).

    Args:
        batches: Where the rows come from.
        begin: Is told of each claim; gives the rows to send.
        concurrency: How many calls are in flight at once.
        clock: Seconds that only grow.
        linger: So many seconds after the last row was taken or decided it looks for further ones; 0: not at all.
        peek: Whether there may be further rows. Called once a second while it lingers.
    """

    def __init__(
        self,
        batches: Batches,
        begin: Callable[[Claimed], list[Work]],
        concurrency: int,
        clock: Callable[[], float],
        *,
        linger: float = 0.0,
        peek: Callable[[], bool] = lambda: False,
    ) -> None:
        self._batches = batches
        self._begin = begin
        self._clock = clock
        self._enough = 2 * concurrency
        self._size = max(_LEAST_CLAIMED, min(self._enough, _MOST_CLAIMED))
        #: When rows may be had, and when it is looked again whether few are left.
        self._next = 0.0
        self._next_check = 0.0
        self._linger = linger
        self._peek = peek
        #: Since when no row was there, and how long it looks away; None while it does not linger.
        self._idle_since: float | None = None
        self._pause = _PEEK_SECONDS

    @property
    def delay(self) -> float:
        """Seconds until it may have further rows; infinite while enough rows wait, and after the last one."""
        return max(0.0, self._next - self._clock())

    def take(self, waiting: int, ready: Callable[[Call], int], helps: Callable[[Work], bool]) -> list[Work]:
        """The rows of the next batch, where few are left that could make a call.

        While calls are in trouble all batches up to one that has a row of another kind: it may go well.
        """
        now = self._clock()
        enough = self._next == math.inf and not self._batches.exhausted
        if (now < self._next and not enough) or (waiting >= self._enough and now < self._next_check):
            return []
        if self._idle_since is not None and self._batches.exhausted and not self._is_to_look(now):
            return []
        branches = self._running_dry(ready)
        works: list[Work] = []
        claimed = Claimed()
        while branches and self._batches.held < _MOST_HELD and not any(helps(work) for work in works):
            claimed = self.claim(branches)
            if not claimed.rows:
                break
            works += self._begin(claimed)
        if works:
            self._idle_since, self._pause = None, _PEEK_SECONDS
        if self._batches.exhausted:
            # Rows that somebody else had may only have been looked at.
            again = self._batches.look_again()
            self._next = self._clock() + LOCK_SECONDS if again else self._lingering()
        elif claimed.rows:
            self._next = now
        else:
            self._next, self._next_check = math.inf, now + _CHECK_SECONDS
        return works

    def active(self) -> None:
        """A row was decided: the lingering counts from now."""
        if self._idle_since is not None:
            self._idle_since = self._clock()

    def _lingering(self) -> float:
        """When it looks for further rows, after those that there were."""
        if not self._linger or self._batches.full:
            return math.inf
        if self._idle_since is None:
            self._idle_since = self._clock()
            _log.debug("lingering", extra=fields(seconds=self._linger))
        return self._clock() + self._pause

    def _is_to_look(self, now: float) -> bool:
        """Whether rows came; ends the lingering when its time is over."""
        longest = max(self._linger, _LONGEST_CALL_SECONDS) if self._batches.held else self._linger
        if self._idle_since is not None and now - self._idle_since > longest:
            self._next = math.inf
            return False
        if not self._peek():
            self._next, self._pause = now + _PEEK_SECONDS, _PEEK_SECONDS
            return False
        # If none of them can be had, they are others' for longer.
        self._pause = min(2 * self._pause, _LONGEST_PEEK_SECONDS)
        self._batches.look_anew()
        return True

    def claim(self, branches: Collection[Branch]) -> Claimed:
        """Claim a batch; how long that takes decides how large the next one is."""
        began = self._clock()
        claimed = self._batches.take(branches, self._size)
        took = self._clock() - began
        if claimed.rows and took > 0:
            fitting = int(len(claimed.rows) * _SECONDS_OF_A_CLAIM / took)
            self._size = max(_LEAST_CLAIMED, min(2 * self._size, fitting, _MOST_CLAIMED))
        return claimed

    def _running_dry(self, ready: Callable[[Call], int]) -> list[Branch]:
        """The branches of which few rows could make a call by now."""
        repairs = ready(Call.GET_RUN) + ready(Call.REPAIR)
        rows = {Branch.NEW: ready(Call.RUN_NOW), Branch.REPAIR: repairs}
        return [branch for branch, number in rows.items() if number < self._enough]
