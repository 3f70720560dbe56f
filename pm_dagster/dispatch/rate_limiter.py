"""Paces each endpoint of the Jobs API: uses what the workspace allows, and exceeds it only to learn what that is.

Nobody outside Databricks knows how the workspace counts: in fixed seconds, in the second that just passed, or in a
token bucket of unknown size. The law stays within either window and within a bucket of a second's calls, for each
endpoint by itself; smaller buckets it learns.

**The window.** At rate ``r`` a window is ``w = floor(r)`` calls, at least one. No more than ``w`` calls start in any
``w / r + 0.06`` seconds. Calls reach the workspace up to 0.06 seconds later than others of the same window; without
that margin, the first calls of a window meet the last ones of the window before. A window starts at most at twice the
rate, so that time in which nobody asked is caught up, and so that a token bucket of half a second nearly holds. An
eighth of a window may start at once, for the deciding thread commits between two looks and would fall behind.

**The margin where it is not needed.** A rate below the published limit needs no margin of its own: ``w`` calls in
``w / r`` seconds, and the window with its margin at the published limit. At 18 a second that is 18 calls in a second
and 20 in 1.06 seconds.

**The learnt ceiling.** A 429 ends the belief in the rate. The calls of the second before it that were not throttled
are what the workspace let through, and they become the ceiling. A 429 within two seconds after a pause leaves at most
three quarters of the ceiling: two fixed windows had been counted as one. The ceiling holds for 6 seconds after the
pause, then rises by 1, 2, 4, 8 calls a second until the next 429 or the configured rate. Where that 429 finds that nine
tenths of the ceiling got through, the ceiling was right and stays. Calls that had started before a 429 came belong to
it: theirs correct the count and lower nothing a second time.

**Even calls.** A 429 at a ceiling of which not half got through means a bucket too small for a window at twice the
rate. From then on calls start one by one, ``1 / r`` seconds and their part of the margin apart.

**The pause.** Retry-After is honoured as it is; a 429 without it pauses the endpoint for one second. An endpoint
without a rate pauses for at least one second, for nothing else holds it back.

**One budget for all dispatchers.** Where a ledger is shared, so is all of the above: one record for each workspace has
the starts, the pauses and the ceilings of all dispatchers, and each in its turn reads it, does what it has to do and
writes it back, in one short transaction (``exchange``; ``shared_budget`` makes it). The moments in the record are of
the database's clock. A dispatcher translates them by the difference to its own monotonic clock, so that no two clocks
of dispatchers are compared.

* *Alone.* A dispatcher that sees no other one has the whole budget for a second and uses the law as it stands, with its
  own starts. While it has calls to make, it renews that 0.25 seconds before the end. A dispatcher that comes says so in
  the record and starts nothing before the holder has seen it, or has let the second pass. Then the calls that the
  holder may have made since it last wrote count as made, evenly.
* *Several.* Each reserves the moments of its next starts: of the coming quarter of a second its part, one call at
  least, and no more than are due. A moment that is not used within 0.5 seconds is given back with the next exchange;
  so are all that are left when there is nothing to send. A start that was late is corrected. Who sends nothing for 1.5
  seconds is not counted. A dispatcher that is killed costs the others what it had reserved, or the rest of its second.
* *A 429* is told at once. Moments that were reserved before it belong to it.
* *Different rates.* The highest ``rate`` of those who send is the rate of all.
* *No record* (the database is away, a right is missing): each goes on by itself.

The numbers, the simulations that chose them and what was worse: ``docs/adr/0046-window-and-ceiling.md`` for the law,
``docs/adr/0053-one-budget.md`` for sharing it.

**Calls that wait for a free thread.** A call that may start and has not left yet counts as one that starts at each
moment anew. So what leaves together after a stall is no more than what may start together.

The limiter neither sleeps nor calls: the worker asks how long to wait.
"""

from __future__ import annotations

import math
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pm_dagster.dispatch.model import Call, CallStart

#: What the documentation of the Jobs API allows a workspace, in calls per second.
PUBLISHED: Mapping[Call, float] = {Call.RUN_NOW: 20, Call.REPAIR: 5, Call.GET_RUN: 100, Call.LIST_RUNS: 30}
#: Seconds by which one call may reach the workspace later than another one.
_MARGIN = 0.06
#: How many times the rate calls may follow each other within a window.
_BURST = 2.0
#: The share of a window that may start at once.
_TOGETHER = 1 / 8
#: Seconds for which a learnt ceiling holds.
_HOLD = 6.0
#: Seconds between two steps upwards, and the first step as a share of the ceiling; at least one call a second.
_STEP_SECONDS = 1.0
_STEP_SHARE = 0.05
#: The most that is left of a ceiling that met a 429 within so many seconds after a pause.
_CUT = 0.75
_SOON = 2.0
#: A ceiling that held is right when at least this share of it got through while the rate rose above it.
_CONFIRMED = 0.9
#: A ceiling of which less than this share got through was met too fast, not too often.
_TOO_FAST = 0.5
#: A ceiling is at least this share of the rate that met the 429, and of the configured one.
_LEAST_OF_TRIED = 0.25
_LEAST_OF_RATE = 0.05
#: Seconds of pause after a 429 that asks for none.
_UNASKED_PAUSE = 1.0
#: Floating point: 18 calls a second for a second are 18 calls.
_NEARLY = 1e-9

#: Seconds for which a dispatcher that is alone has the whole budget, and how long before their end it asks again.
_WHOLE_SECONDS = 1.0
_RENEW_BEFORE = 0.25
#: Seconds between two looks of a dispatcher that waits for another one to share.
_LOOK_SECONDS = 0.1
#: Seconds ahead for which dispatchers reserve moments.
_AHEAD = 0.25
#: A moment is used at most so many seconds late.
_LATE = 0.5
#: A dispatcher that asked for nothing for so many seconds is not counted.
_SEEN_SECONDS = 1.5
#: Seconds for which a dispatcher goes on by itself before it tries again to share.
_BY_ITSELF_SECONDS = 5.0
#: The difference between two clocks is measured anew when it moves by more than so many seconds, and sinks by so many
#: in a second: what is measured is never more than the difference, and less by the time that an answer took.
_CLOCK_MOVED = 0.25
_CLOCK_SINKS = 0.001
#: Who may ask again at once does so in so many seconds.
_SOONEST = 0.001
#: A record of another form is begun anew.
_FORM = 1

#: What the dispatchers of a workspace share, as JSON: see ``RateLimiter.exchange``.
Record = dict[str, Any]


@dataclass
class _Pace:
    """The state of one endpoint; moments are seconds of the limiter's clock, rates are calls per second.

    Attributes:
        rate: The configured rate; 0 for none.
        limit: What the workspace is believed to allow, at least ``rate``.
        starts: The last calls that started or may start, the oldest first.
        paused_until: No call starts before.
        ceiling: What the last 429 taught; None while nothing but ``rate`` counts.
        held_from: When the ceiling's time begins: the end of the pause.
        even: Whether calls start one by one.
        learnt_at: When the last 429 came that was no part of the one before.
        throttled_at: When its call had started.
        tried: The rate that held when it came.
        proven: The ceiling that had held until then, where the rate had risen above it; else 0.
        soon: Whether it came within two seconds after a pause.
        too_fast: Whether it says that calls came too close together, and nothing about the rate.
        own: Those of ``starts`` that are this dispatcher's.
        slots: Those of ``own`` that are reserved and not used yet, the earliest first.
        returned: Moments in the record of reserved starts that were not used.
        ask_at: When more can be reserved.
    """

    rate: float
    limit: float
    starts: deque[CallStart] = field(default_factory=deque)
    paused_until: float = -math.inf
    ceiling: float | None = None
    held_from: float = -math.inf
    even: bool = False
    learnt_at: float = -math.inf
    throttled_at: float = 0.0
    tried: float = 0.0
    proven: float = 0.0
    soon: bool = False
    too_fast: bool = False
    own: deque[CallStart] = field(default_factory=deque)
    slots: deque[CallStart] = field(default_factory=deque)
    returned: list[float] = field(default_factory=list)
    ask_at: float = -math.inf

    def rate_at(self, now: float) -> float:
        """The rate that holds at this moment."""
        if self.ceiling is None:
            return self.rate
        rising = now - self.held_from - _HOLD
        if rising < 0:
            return self.ceiling
        steps = min(int(rising / _STEP_SECONDS), 30)
        return min(self.rate, self.ceiling + max(1.0, self.ceiling * _STEP_SHARE) * 2.0**steps)

    def next_start(self, now: float) -> float:
        """The moment from which the windows allow a call."""
        if not self.starts:
            return -math.inf
        rate = self.rate_at(now)
        last, window = self._moment(1, now), _window(rate)
        if self.even:
            return last + 1 / rate + _MARGIN / window
        together = max(1, int(window * _TOGETHER))
        moments = [last]
        if len(self.starts) >= together:
            moments.append(self._moment(together, now) + together / (rate * _BURST))
        believed = self.limit if self.ceiling is None else rate
        for size, seconds in ((window, window / rate), (_window(believed), _window(believed) / believed + _MARGIN)):
            if len(self.starts) >= size:
                moments.append(self._moment(size, now) + seconds)
        return max(moments)

    def _moment(self, back: int, now: float) -> float:
        """The moment that counts of the call that is so many starts back."""
        return self.starts[-back].counts_at(now)

    def got_through(self) -> int:
        """How many calls of the second before the 429 were not throttled, as far as their answers are known."""
        second = (start for start in self.starts if self.throttled_at - 1.0 < start.at <= self.throttled_at)
        return sum(not start.throttled for start in second)

    def learn(self, start: CallStart, now: float) -> None:
        """Take in a 429."""
        if min(start.at, start.reserved_at) >= self.learnt_at:
            self._begin(start, now)
        if self.too_fast:
            self.even = True
            return
        got = self.got_through()
        learnt = min(got, self.tried * _CUT) if self.soon else got
        if got >= self.proven * _CONFIRMED:
            learnt = max(learnt, self.proven)
        self.ceiling = max(learnt, self.tried * _LEAST_OF_TRIED, self.rate * _LEAST_OF_RATE)

    def _begin(self, start: CallStart, now: float) -> None:
        """Note what held when a 429 came that is no part of the one before."""
        self.learnt_at, self.throttled_at = now, start.at
        self.tried, ceiling = self.rate_at(now), self.ceiling or 0.0
        self.proven = ceiling if self.tried > ceiling else 0.0
        self.soon = start.at < self.held_from + _SOON
        self.too_fast = self.tried == ceiling and not self.even and self.got_through() < self.tried * _TOO_FAST

    # ---- in the shared record

    def reserve(self, wanted: int, others: int, now: float) -> None:
        """Reserve moments for at most so many starts: our part of the time ahead."""
        rate = self.rate_at(now)
        ahead = max(_AHEAD, (1 + others) / rate)
        part = max(1, math.ceil(rate * _AHEAD / (1 + others)))
        self.ask_at = now
        for _ in range(min(wanted, part) - len(self.slots)):
            moment = max(now, self.paused_until, self.next_start(now))
            if moment > now + ahead:
                self.ask_at = moment - ahead
                return
            start = CallStart(reserved_at=now, reserved_for=moment)
            self.starts.append(start)
            self.own.append(start)
            self.slots.append(start)

    def give_back(self, until: float) -> None:
        """Give back the reserved moments before this one."""
        while self.slots and self.slots[0].reserved_for < until:
            self.forget(self.slots.popleft())

    def forget(self, start: CallStart) -> None:
        """Let a start that has not left count no more."""
        for starts in (self.starts, self.own):
            if start in starts:
                starts.remove(start)
        if start.noted_at is not None:
            self.returned.append(start.noted_at)

    def suppose(self, until: float) -> None:
        """Count calls that may have been made until then, evenly at the full rate. None of them got through."""
        size = _window(self.limit)
        seconds = _WHOLE_SECONDS
        supposed = (CallStart(until - (size - 1 - n) * seconds / size, throttled=True) for n in range(size))
        self.starts.extend(supposed)

    def as_json(self, now: float, offset: float) -> dict[str, Any]:
        """What the record has of this endpoint; ``offset`` is what the record's clock is ahead."""
        kept = list(self.starts)[-(math.ceil(1.5 * self.limit) + 2) :]
        for start in kept:
            start.noted_at = round(start.counts_at(now) + offset, 4)
        self.returned.clear()
        moments = {name: _json_moment(getattr(self, name), offset) for name in _MOMENTS}
        others = {name: getattr(self, name) for name in _OTHERS}
        return {"starts": [[start.noted_at, int(start.throttled)] for start in kept], **moments, **others}

    def take_over(self, told: Mapping[str, Any], now: float, offset: float) -> None:
        """Take in what others wrote; what of our own starts changed since we wrote holds."""
        own: dict[float | None, list[CallStart]] = {}
        for start in self.own:
            own.setdefault(start.noted_at, []).append(start)
        returned, starts = list(self.returned), own.pop(None, [])
        for moment, throttled in told["starts"]:
            if moment in returned:
                returned.remove(moment)
            elif moment in own:
                starts.append(own[moment].pop())
                if not own[moment]:
                    del own[moment]
            else:
                starts.append(CallStart(moment - offset, bool(throttled)))
        self.starts.clear()
        self.starts.extend(sorted(starts, key=lambda start: start.counts_at(now)))
        for name in _MOMENTS:
            setattr(self, name, -math.inf if told[name] is None else told[name] - offset)
        for name in _OTHERS:
            setattr(self, name, told[name])


_MOMENTS = ("paused_until", "held_from", "learnt_at", "throttled_at")
_OTHERS = ("ceiling", "even", "tried", "proven", "soon", "too_fast")


def _json_moment(moment: float, offset: float) -> float | None:
    return None if math.isinf(moment) else round(moment + offset, 4)


@dataclass(frozen=True)
class _Throttled:
    """A 429 that others do not know yet."""

    call: Call
    start: CallStart
    paused_until: float
    came_at: float


class RateLimiter:
    """One pace per endpoint, by the law above.

    For the dispatch's one deciding thread.

    Args:
        rates: Calls per second; 0 or absent = no pacing.
        clock: Monotonic seconds.
        shares: Whether the budget is shared: ``exchange`` comes before the first call then.
    """

    def __init__(self, rates: Mapping[Call, float], clock: Callable[[], float], *, shares: bool = False) -> None:
        self._clock = clock
        self._rates = {call: rates.get(call, 0.0) for call in Call}
        self._paces = {call: _pace(rate, PUBLISHED.get(call, 0.0)) for call, rate in self._rates.items()}
        self.throttled = 0
        self._me = uuid.uuid4().hex[:12]
        #: Until when the whole budget is ours, or we go on by ourselves.
        self._whole_until = -math.inf if shares else math.inf
        self._untold: list[_Throttled] = []
        #: What the record's clock is ahead of ours, and when that was measured.
        self._offset, self._measured_at = -math.inf, -math.inf
        #: How many other dispatchers send, as the last exchange found.
        self.others = 0
        #: Endpoints at which others got a 429 that we did not know, until somebody takes them out.
        self.heard: list[Call] = []

    def delay(self, call: Call) -> float:
        """Seconds until the next call of this endpoint may start; 0 when it may start now."""
        pace, now = self._paces[call], self._clock()
        if pace.rate and not self._is_whole(now):
            pace.give_back(now - _LATE)
            soonest = pace.slots[0].reserved_for if pace.slots else max(pace.ask_at, now + _SOONEST)
            return max(0.0, pace.paused_until - now, soonest - now)
        return max(0.0, pace.paused_until - now, pace.next_start(now) - now if pace.rate else 0.0)

    def rate(self, call: Call) -> float:
        """The calls per second that hold now, for all dispatchers together; 0 without pacing."""
        return self._paces[call].rate_at(self._clock())

    def take(self, call: Call) -> CallStart:
        """Note that a call may start; what is returned belongs to ``sent`` or ``withdraw``, and to ``throttle``."""
        pace = self._paces[call]
        if pace.slots and not self._is_whole(self._clock()):
            return pace.slots.popleft()
        start = CallStart()
        if pace.rate:
            pace.starts.append(start)
            pace.own.append(start)
        return start

    def sent(self, start: CallStart) -> None:
        """Note that the call leaves now. For the thread that makes the call, whichever it is."""
        start.at = self._clock()

    def withdraw(self, call: Call, start: CallStart) -> None:
        """Forget a call that may not start any more and has not left."""
        pace = self._paces[call]
        pace.forget(start)

    def throttle(self, call: Call, retry_after: float | None, start: CallStart) -> float:
        """Take in a 429.

        Args:
            call: The endpoint.
            retry_after: Seconds for which the workspace asks; None where it does not.
            start: The start of the call that was throttled.

        Returns:
            The seconds of pause that this answer asks for.
        """
        self.throttled += 1
        pace = self._paces[call]
        now = self._clock()
        start.throttled = True
        # Without a pace nothing else holds back an endpoint that says 429 and "at once".
        shortest = 0.0 if pace.rate else _UNASKED_PAUSE
        pause = _UNASKED_PAUSE if retry_after is None else max(shortest, retry_after)
        came = _Throttled(call, start, now + pause, now)
        self._learn(came)
        if pace.rate and self._whole_until < math.inf:
            self._untold.append(came)
        return pause

    def _learn(self, came: _Throttled) -> None:
        pace = self._paces[came.call]
        pace.paused_until = max(pace.paused_until, came.paused_until)
        if pace.rate:
            pace.learn(came.start, came.came_at)
            pace.held_from = max(pace.held_from, pace.paused_until)

    # ---- one budget with others

    def _is_whole(self, now: float) -> bool:
        return now < self._whole_until

    def wants_exchange(self, due: Mapping[Call, int]) -> bool:
        """Whether an exchange is to come before the next calls.

        Args:
            due: How many calls of each endpoint could start now, as far as the rate allows.
        """
        now = self._clock()
        if now < self._whole_until - _RENEW_BEFORE:
            return False
        paced = [pace for call, pace in self._paces.items() if pace.rate and due.get(call)]
        if self._is_whole(now):
            return bool(paced)
        for pace in paced:
            pace.give_back(now - _LATE)
        return bool(self._untold) or any(not pace.slots and now >= pace.ask_at for pace in paced)

    @property
    def exchange_in(self) -> float:
        """Seconds until an exchange may be due that no call waits for; infinite where there is none."""
        now = self._clock()
        if self._is_whole(now):
            return max(_SOONEST, self._whole_until - _RENEW_BEFORE - now)
        return _SOONEST if self._untold else math.inf

    def exchange(self, due: Mapping[Call, int], told: Record | None, now: float) -> Record:
        """Take in what others wrote, do what is to be done, and give what is to be written instead.

        To be called while nobody else can read or write the record, and to be written at once.

        Args:
            due: As for ``wants_exchange``.
            told: The record; None where there is none.
            now: Seconds of the record's clock.

        Returns:
            The record: ``form``; ``at``, when it was written; ``by`` whom; ``seen``, when and with which rates each
            dispatcher asked last; ``whole``, who has the whole budget until when; ``calls``, the pace of each endpoint.
            Moments are seconds of the record's clock.
        """
        record = self._read(told, now)
        here, offset = self._clock(), self._measure(now)
        seen = {who: each for who, each in record["seen"].items() if each["at"] > now - _SEEN_SECONDS}
        seen[self._me] = {
            "at": round(now, 4),
            "rates": {call.value: rate for call, rate in self._rates.items() if rate},
        }
        holder, until = record["whole"]
        self.others = len(seen) - 1
        if holder != self._me and until > now:
            self._whole_until = -math.inf
            for pace in self._paces.values():
                pace.ask_at = here + min(until - now, _LOOK_SECONDS)
            return {**record, "at": round(now, 4), "seen": seen}
        self._take_over(record, offset)
        if holder != self._me and until > record["at"]:
            for pace in self._paced():
                pace.suppose(until - offset)
        self._set_rates(seen)
        if self.others:
            self._whole_until, whole = -math.inf, ["", 0.0]
            self._reserve(due, here)
        else:
            self._whole_until, whole = here + _WHOLE_SECONDS, [self._me, round(now + _WHOLE_SECONDS, 4)]
            for pace in self._paced():
                pace.give_back(math.inf)
        return self._written(now, offset, seen, whole)

    def leave(self, told: Record | None, now: float) -> Record:
        """What is to be written in the place of ``told`` when nothing is left to be sent."""
        record, offset = self._read(told, now), self._measure(now)
        seen = {who: each for who, each in record["seen"].items() if who != self._me}
        whole = record["whole"]
        self._whole_until = -math.inf
        if whole[0] not in ("", self._me) and whole[1] > now:
            return {**record, "at": round(now, 4), "seen": seen}
        self._take_over(record, offset)
        for pace in self._paced():
            pace.give_back(math.inf)
        return self._written(now, offset, seen, ["", 0.0])

    @property
    def takes_part(self) -> bool:
        """Whether others reckon with us now: the whole budget is ours, or moments are reserved."""
        if self._is_whole(self._clock()):
            return self._whole_until < math.inf
        return any(pace.slots for pace in self._paces.values()) or bool(self._untold)

    def go_by_itself(self) -> None:
        """Share nothing for a while: the record cannot be read or written."""
        self._whole_until = self._clock() + _BY_ITSELF_SECONDS
        for pace in self._paced():
            pace.give_back(math.inf)

    def share_nothing(self) -> None:
        """Share nothing any more."""
        self.go_by_itself()
        self._whole_until = math.inf

    def _paced(self) -> Iterable[_Pace]:
        return (pace for pace in self._paces.values() if pace.rate)

    def _read(self, told: Record | None, now: float) -> Record:
        """The record; where its clock went back since it was written, all its moments go back with it."""
        empty: Record = {"form": _FORM, "at": now, "by": "", "seen": {}, "whole": ["", 0.0], "calls": {}}
        if not isinstance(told, dict) or told.get("form") != _FORM or told.keys() != empty.keys():
            return empty
        back = told["at"] - now
        return _shifted(told, back) if back > 0 else told

    def _measure(self, now: float) -> float:
        here = self._clock()
        sample = now - here
        kept = self._offset - _CLOCK_SINKS * (here - self._measured_at) if self._offset > -math.inf else sample
        self._offset = max(sample, kept) if abs(sample - kept) < _CLOCK_MOVED else sample
        self._measured_at = here
        return self._offset

    def _take_over(self, record: Record, offset: float) -> None:
        """Take in what others wrote, unless it was written by ourselves: then what we know is newer."""
        here = self._clock()
        if record["by"] != self._me:
            for call, pace in self._paces.items():
                if pace.rate and call.value in record["calls"]:
                    before = pace.learnt_at
                    pace.take_over(record["calls"][call.value], here, offset)
                    if pace.learnt_at > max(before, here - _SEEN_SECONDS) + _CLOCK_MOVED:
                        self.heard.append(call)
            for came in self._untold:
                self._learn(came)
        self._untold.clear()

    def _set_rates(self, seen: Mapping[str, Any]) -> None:
        for call, pace in self._paces.items():
            if pace.rate:
                pace.rate = max(each["rates"].get(call.value, 0.0) for each in seen.values())
                pace.limit = max(pace.rate, PUBLISHED.get(call, 0.0))

    def _reserve(self, due: Mapping[Call, int], here: float) -> None:
        for call, pace in self._paces.items():
            if not pace.rate:
                continue
            wanted = due.get(call, 0)
            pace.give_back(here - _LATE if wanted else math.inf)
            pace.reserve(wanted, self.others, here)

    def _written(self, now: float, offset: float, seen: Mapping[str, Any], whole: list[Any]) -> Record:
        calls = {call.value: pace.as_json(self._clock(), offset) for call, pace in self._paces.items() if pace.rate}
        return {"form": _FORM, "at": round(now, 4), "by": self._me, "seen": dict(seen), "whole": whole, "calls": calls}


def _shifted(told: Record, back: float) -> Record:
    """The record with all moments so many seconds earlier."""

    def earlier(moment: float | None) -> float | None:
        return None if moment is None else moment - back

    calls = {
        call: pace
        | {name: earlier(pace[name]) for name in _MOMENTS}
        | {"starts": [[moment - back, throttled] for moment, throttled in pace["starts"]]}
        for call, pace in told["calls"].items()
    }
    seen = {who: {**each, "at": each["at"] - back} for who, each in told["seen"].items()}
    whole = [told["whole"][0], told["whole"][1] - back]
    return {**told, "at": told["at"] - back, "seen": seen, "whole": whole, "calls": calls}


def _pace(rate: float, published: float) -> _Pace:
    limit = max(rate, published)
    # Several windows, so that what got through in one second is still known when its 429 comes late.
    kept = 8 * math.ceil(limit) + 8
    return _Pace(rate, limit, deque(maxlen=kept), own=deque(maxlen=kept))


def _window(rate: float) -> int:
    return max(1, math.floor(rate + _NEARLY))
