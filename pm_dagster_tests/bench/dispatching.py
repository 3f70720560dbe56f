"""Cases about the dispatch itself: how near it comes to what the API's latency, concurrency and limits allow."""

from __future__ import annotations

import json
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import requests

from pm_dagster_tests.bench.big_database import Size, make, measured
from pm_dagster_tests.bench.frame import Case, Figure
from pm_dagster_tests.bench.place import (
    AT_THE_LIMITS,
    JOB,
    LIMITS,
    OTHERS_JOB,
    UNPACED,
    Deployment,
    Place,
    Request,
    report_of,
    seconds_of,
    span,
    throttled,
    variables_of,
)

_POSTGRES = "Postgres"
_LATENCY, _JITTER = 0.1, 0.06
_LOOPED_ROWS = 18


def _of_the_limit(most: float, measured: str = "dispatch") -> Figure:
    return Figure("of the limit", most=most, measured=measured, reference="limit")


def _mixed(place: Place, workers: int) -> Mapping[str, float]:
    """A dispatch without pacing beside the arithmetic, a thread pool and a loop of the same calls."""
    new, repair = place.size(1000, 40), place.size(200, 8)
    at = partial(place.deployment, new, repair, latency=_LATENCY)
    with at() as deployment:
        settings = deployment.settings(concurrency=workers, **UNPACED)
        took = seconds_of(lambda: deployment.dispatch(settings))
    with at() as deployment:
        pool = deployment.pool(workers)
    with at() as deployment:
        looped = deployment.sequential(place.size(_LOOPED_ROWS, 6)) * (new + repair)
    # A repair needs two calls.
    ideal = (new + 2 * repair) * _LATENCY / workers
    return {
        "dispatch": took,
        "ms a row": 1000 * took / (new + repair),
        "thread pool": pool,
        "ideal": ideal,
        "loop": looped,
        "share of the ideal": ideal / took,
        "of the thread pool": took / pool,
        "sequential loop is slower by": looped / took,
    }


def _mixed_case(workers: int, least: float) -> Case:
    return Case(
        f"mixed-{workers}",
        f"1,000 new rows and 200 repairs without limits, {workers} calls in flight, answers after 100 ms;"
        " beside calls x latency / workers, a thread pool around the bare SDK, and a loop of single calls, each with a"
        " connection of its own (18 rows, scaled)",
        f"at least {least:g} of what latency and concurrency allow, within 1.15 x of the thread pool",
        (
            Figure("share of the ideal", least=least, measured="dispatch", reference="ideal"),
            Figure("of the thread pool", most=1.15, measured="dispatch", reference="thread pool"),
            Figure("sequential loop is slower by", measured="loop", reference="dispatch"),
            Figure("dispatch", "s"),
            Figure("ideal", "s"),
            Figure("loop", "s"),
            Figure("ms a row", "ms"),
            Figure("thread pool", "s"),
        ),
        lambda place: _mixed(place, workers),
    )


def _limited(place: Place, rates: Mapping[str, float], jitter: float) -> Mapping[str, float]:
    """A dispatch under the limits of a workspace; the reference is rows / rate of the slower branch."""
    new, repair = place.size(300, 20), place.size(75, 5)
    with place.deployment(new, repair, latency=_LATENCY, jitter=jitter, limits=LIMITS) as deployment:
        settings = deployment.settings(**rates)
        took = seconds_of(lambda: deployment.dispatch(settings))
        limit = max(new / settings.rate_run_now, repair / settings.rate_repair)
        return {"dispatch": took, "limit": limit, "of the limit": took / limit, "429": throttled(deployment.calls())}


def _follows(calls: Sequence[Request], moment: float) -> float:
    """Seconds after the moment until three of them begin in which less than a tenth of the calls is answered 429."""
    return _seconds_until(calls, moment, 3.0, lambda seen: throttled(seen) < 0.1 * len(seen))


def _recovers(calls: Sequence[Request], moment: float, rate: float) -> float:
    """Seconds after the moment until two of them begin in which nine tenths of the rate get through."""
    return _seconds_until(calls, moment, 2.0, lambda seen: len(seen) - throttled(seen) >= 2 * 0.9 * rate)


def _seconds_until(
    calls: Sequence[Request], moment: float, window: float, good: Callable[[Sequence[Request]], bool]
) -> float:
    """Seconds after the moment until the first window whose calls are good; until the last call without one."""
    later = sorted((call for call in calls if call.began >= moment), key=lambda call: call.began)
    for first in later:
        seen = [call for call in later if first.began <= call.began < first.began + window]
        if good(seen):
            return first.began - moment
    return later[-1].began - moment if later else 0.0


def _lower(place: Place) -> Mapping[str, float]:
    """The workspace takes half of what we believe."""
    new = place.size(150, 20)
    with place.deployment(new, latency=_LATENCY, limits={**LIMITS, "run-now": 10.0}) as deployment:
        took = seconds_of(lambda: deployment.dispatch(deployment.settings(**AT_THE_LIMITS)))
        limit = new / 10.0
        calls = deployment.calls()
        return {
            "dispatch": took,
            "limit": limit,
            "of the limit": took / limit,
            "429": throttled(calls),
            "follows": _follows(calls, min(call.began for call in calls)),
        }


@contextmanager
def _another_client(place: Place, rate: float, begins: float, ends: float) -> Iterator[None]:
    """Another client asks for runs at this rate, from and to these seconds after the block began."""
    over = threading.Event()
    began = time.monotonic()

    def work() -> None:
        at = began + begins
        while at < began + ends and not over.wait(max(0.0, at - time.monotonic())):
            place.post("run-now", {"job_id": OTHERS_JOB, "job_parameters": {}})
            at += 1 / rate

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _shared(place: Place) -> Mapping[str, float]:
    """Another client takes half of run-now's budget for six seconds and gives it back."""
    new, begins, ends = place.size(320, 20), place.size(2, 0), place.size(8, 1)
    with place.deployment(new, latency=_LATENCY, limits=LIMITS) as deployment:
        began = time.time()
        with _another_client(place, 10.0, begins, ends):
            took = seconds_of(lambda: deployment.dispatch(deployment.settings(**AT_THE_LIMITS)))
        calls, others = deployment.calls(JOB), deployment.calls(OTHERS_JOB)
        limit = (new + len(others) - throttled(others)) / LIMITS["run-now"]
        return {
            "dispatch": took,
            "limit": limit,
            "of the limit": took / limit,
            "429": throttled(calls),
            "429 of the other": throttled(others),
            "follows": _follows(calls, began + begins),
            "recovers": _recovers(calls, began + ends, LIMITS["run-now"]),
        }


def _together(place: Place, count: int) -> Mapping[str, float]:
    """Several ``pm dispatch`` that start together; the time is that of the calls, from the first to the last."""
    new, repair = place.size(300, 20), place.size(75, 5)
    with place.deployment(new, repair, latency=_LATENCY, limits=LIMITS) as deployment:
        # Each may take its share and no more, so that one that finds no rows leaves some waiting.
        share = {"PM_DISPATCH_LIMIT": str(math.ceil((new + repair) / count))}
        # A call that is throttled is a figure here.
        rates = variables_of(AT_THE_LIMITS) | share | {"PM_LOG_LEVEL": "error"}
        command = ("-m", "pm_dagster.cli", "dispatch", "--json")
        reports = [report_of(each) for each in [deployment.start(*command, **rates) for _ in range(count)]]
        calls = deployment.calls()
        answered = Counter(call.endpoint for call in calls if call.status == requests.codes.ok)
        limit = max(answered[each] / LIMITS[each] for each in ("run-now", "runs/repair"))
        return {
            "calls span": span(calls),
            "limit": limit,
            "of the limit": span(calls) / limit,
            "429": throttled(calls),
            "% of calls 429": 100 * throttled(calls) / len(calls),
            "rows left waiting": new + repair - sum(report["scheduled"] for report in reports),
            "dispatchers without a row": sum(report["scheduled"] == 0 for report in reports),
        }


def _together_case(count: int, word: str) -> Case:
    return Case(
        word,
        f"{count} `pm dispatch` that start together: 300 new rows and 75 repairs, PM_RATE_* equal to the limits,"
        " each may take its share of the rows, answers after 100 ms; beside answered calls / limit",
        "one budget for all: within 1.1 x of the limit, less than 0.5 % of the calls answered 429; each finds rows",
        (
            _of_the_limit(1.1, "calls span"),
            Figure("% of calls 429", most=0.5),
            Figure("rows left waiting", most=0),
            Figure("dispatchers without a row", most=0),
            Figure("calls span", "s"),
            Figure("limit", "s"),
            Figure("429"),
        ),
        lambda place: _together(place, count),
    )


def _backlog(place: Place, deadline: float) -> Mapping[str, float]:
    """A dispatch that may take all of a big backlog, beside one of 1,000 rows of it."""
    waiting, few = place.size(100_000, 400), place.size(1000, 40)
    shared = variables_of(UNPACED) | {"PM_CONCURRENCY": "64", "PM_DEADLINE_SECONDS": str(deadline)}
    with place.deployment(waiting) as deployment:

        def dispatch(limit: int) -> tuple[int, float, float]:
            variables = shared | {"PM_DISPATCH_LIMIT": str(limit)}
            out, peak = deployment.run_followed("-m", "pm_dagster.cli", "dispatch", "--json", **variables)
            report = json.loads(out)
            if not report["scheduled"]:
                raise RuntimeError(f"a dispatch of {limit:,} rows scheduled none in {report['seconds']:.0f} s")
            return report["scheduled"], 1000 * report["seconds"] / report["scheduled"], peak

        _, few_each, few_peak = dispatch(few)
        rows, each, peak = dispatch(waiting)
        scheduled = deployment.sql("SELECT count(*) FROM mm_run_plc WHERE run_sttus_name = 'SCHEDULED'")
    if scheduled != [(few + rows,)]:
        raise RuntimeError(f"the reports have {few} and {rows} rows; the control table has {scheduled}")
    return {
        "ms a row": each,
        "ms a row of 1,000": few_each,
        "time a row": each / few_each,
        "peak": peak,
        "peak of 1,000": few_peak,
        "memory": peak / few_peak if few_peak else math.nan,
        "rows": rows,
    }


def _backlog_case(name: str, told: str, deadline: float, memory: float, *, trials: int, named: bool = False) -> Case:
    return Case(
        name,
        f"100,000 rows wait and one `pm dispatch` may take all of them, {told}: 64 calls in flight, no limits, answers"
        " at once; beside a dispatch of 1,000 of these rows. Memory is the most that the process held",
        f"time a row within 1.1 x of 1,000 rows, memory within {memory:g} x",
        (
            Figure("time a row", most=1.1, measured="ms a row", reference="ms a row of 1,000"),
            Figure("memory", most=memory, measured="peak", reference="peak of 1,000"),
            Figure("ms a row", "ms"),
            Figure("ms a row of 1,000", "ms"),
            Figure("peak", "MiB"),
            Figure("peak of 1,000", "MiB"),
            Figure("rows"),
        ),
        lambda place: _backlog(place, deadline),
        trials=trials,
        named=named,
    )


def _database(place: Place) -> Mapping[str, float]:
    """What Postgres does for a row: time and transactions in one pass, messages in another, which logs them."""
    new, repair = place.size(500, 40), place.size(100, 8)
    rows = new + repair

    def worked(deployment: Deployment) -> None:
        deployment.dispatch(deployment.settings(**UNPACED))

    with place.deployment(new, repair, latency=_LATENCY) as deployment:
        before = place.statistics(deployment)
        took = seconds_of(lambda: worked(deployment))
        after = place.statistics(deployment)
    with place.deployment(new, repair, latency=_LATENCY) as deployment, place.statements_logged() as count:
        worked(deployment)
        statements = count()
    return {
        "server time": (after[1] - before[1]) / rows,
        "transactions": (after[0] - before[0]) / rows,
        "messages": statements / rows,
        "dispatch": took,
    }


def _big(place: Place) -> Mapping[str, float]:
    """What is read in a database as it is after years, beside one with a thousandth of its history."""
    waiting = place.size(10_000, 200)
    history = place.size(1_000_000, 2_000)
    big = place.kept("big", lambda url: make(url, Size(history=history, waiting=waiting)))
    young = place.kept("young", lambda url: make(url, Size(history=history // 1000, waiting=waiting, dispatchers=10)))
    with measured(big) as one:
        tick, read, status = one.milliseconds("backlog"), one.milliseconds("waiting", limit=1000), one.status()
    with measured(young) as one:
        young_tick = one.milliseconds("backlog")
    return {"tick": tick, "waiting(1000)": read, "status": status, "tick, of a young database": tick / young_tick}


def _limits_case(
    name: str, told: str, aim: str, figures: tuple[Figure, ...], measure: Callable[[Place], Mapping[str, float]]
) -> Case:
    return Case(name, told, aim, (*figures, Figure("dispatch", "s"), Figure("limit", "s")), measure)


CASES: tuple[Case, ...] = (
    _mixed_case(16, 0.93),
    _mixed_case(32, 0.92),
    _limits_case(
        "limits",
        "300 new rows and 75 repairs under the limits of a workspace, PM_RATE_* equal to them, answers after 40 to 160"
        " ms; beside rows / limit",
        "15.8 s where 15 s is the limit (1.053 x), no call answered 429",
        (_of_the_limit(1.053), Figure("429", most=0)),
        lambda place: _limited(place, AT_THE_LIMITS, _JITTER),
    ),
    _limits_case(
        "defaults",
        "the same rows under the same limits with the default PM_RATE_*; beside rows / PM_RATE_*",
        "the limit of those rates and 3 %, no call answered 429",
        (_of_the_limit(1.03), Figure("429", most=0)),
        lambda place: _limited(place, {}, _JITTER),
    ),
    _limits_case(
        "lower",
        "150 new rows, PM_RATE_RUN_NOW=20 where the workspace takes 10 a second; beside rows / 10",
        "within 1.15 x of the limit; follows within 5 s; every row is scheduled",
        (_of_the_limit(1.15), Figure("follows", "s", most=5.0), Figure("429")),
        _lower,
    ),
    _limits_case(
        "shared",
        "320 new rows, PM_RATE_RUN_NOW=20 equal to the limit; another client takes 10 a second from second 2 to 8;"
        " beside (rows + runs that the other got) / 20. Follows: until less than a tenth of our calls is answered 429,"
        " for 3 s. Recovers: until 18 a second get through, for 2 s",
        "within 1.15 x of the limit; follows within 5 s, recovers within 10 s; every row is scheduled",
        (
            _of_the_limit(1.15),
            Figure("follows", "s", most=5.0),
            Figure("recovers", "s", most=10.0),
            Figure("429"),
            Figure("429 of the other"),
        ),
        _shared,
    ),
    _together_case(2, "two"),
    _together_case(4, "four"),
    _backlog_case("backlog", "with a deadline of 15 seconds", 15.0, 1.25, trials=2),
    _backlog_case("backlog-whole", "without a deadline", 3600.0, 2.0, trials=1, named=True),
    Case(
        "database",
        "what Postgres does for one of 500 new rows and 100 repairs without limits, 16 calls in flight: milliseconds"
        " in which sessions work (pg_stat_database), transactions, statements that arrive",
        "at most 1 ms, 0.3 transactions, 2 messages",
        (
            Figure("server time", "ms", most=1.0),
            Figure("transactions", most=0.3),
            Figure("messages", most=2.0),
            Figure("dispatch", "s"),
        ),
        _database,
        group=_POSTGRES,
    ),
    Case(
        "big",
        "what the server takes to read with 10,000 waiting rows, 1,000,000 finished ones and their closed entries,"
        " with the owner's index on the status; beside a database with a thousandth of that history",
        "the sensor's tick at most 10 ms, the ledger's part of `pm status` at most 200 ms",
        (
            Figure("tick", "ms", most=10.0),
            Figure("status", "ms", most=200.0),
            Figure("waiting(1000)", "ms"),
            Figure("tick, of a young database"),
        ),
        _big,
        group=_POSTGRES,
    ),
)
