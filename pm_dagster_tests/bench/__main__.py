"""``make bench``: how fast a dispatch is, beside references taken in the same run.

The workspace is a process of its own, so that it shares no interpreter with what is measured.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pm_dagster_tests.bench import airflow, dispatching, frame, plot, processes
from pm_dagster_tests.bench.frame import Case, Result
from pm_dagster_tests.bench.place import Place

CASES: tuple[Case, ...] = (*dispatching.CASES, *processes.CASES, *airflow.CASES)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the cases, and print their figures."""
    parser = argparse.ArgumentParser(prog="pm_dagster_tests.bench", description="Measure how fast a dispatch is.")
    parser.add_argument(
        "cases",
        nargs="*",
        metavar="CASE",
        help="names, which may hold *; by default all but those measured by name only",
    )
    parser.add_argument("--list", action="store_true", help="list the cases and their aims, and measure nothing")
    parser.add_argument("--quick", action="store_true", help="small forms, once: to see that a case works")
    parser.add_argument(
        "--profile",
        action="store_true",
        help="run each case once under a profiler, and print where its time goes instead of figures",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them as SVG")
    given = parser.parse_args(arguments)
    try:
        cases = frame.chosen(CASES, given.cases)
    except ValueError as error:
        parser.error(str(error))
    if given.list:
        listed = cases if given.cases else CASES
        sys.stdout.write("".join(_listed(case) for case in listed))
        return
    # A call that is throttled is a figure here.
    logging.getLogger("pm_dagster").addHandler(logging.NullHandler())
    if given.profile:
        _profile(cases, quick=given.quick)
        return
    results = _measured(cases, quick=given.quick)
    found = frame.as_json(results, quick=given.quick)
    _tell(results, found)
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")
    if given.plot:
        given.plot.write_text(plot.svg(found))
    if any(result.failed for result in results):
        sys.exit(1)


def _tell(results: Sequence[Result], found: Mapping[str, Any]) -> None:
    sys.stdout.write(frame.table(results))
    for result in results:
        if result.failed:
            sys.stdout.write(f"{result.case.name} failed: {result.failed}\n")
        elif result.reached is False:
            sys.stdout.write(f"{result.case.name}: the aim is not reached: {result.case.aim}\n")
    if found["quick"]:
        sys.stdout.write("Small forms, each once: these figures are no measurement.\n")
    elif found["busy"]:
        sys.stdout.write(
            f"The machine was busy (load {results[0].load:.1f}, {found['cores']} cores): measure again when it is"
            " idle.\n"
        )


def _profile(cases: Sequence[Case], *, quick: bool) -> None:
    with Place(quick=quick) as place:
        for case in cases:
            sys.stdout.write(f"{case.name}\n{place.profile(partial(case.measure, place))}\n")
            place.release()


def _listed(case: Case) -> str:
    only = "    measured only when it is named\n" if case.named else ""
    return f"{case.name}\n    {case.what}\n    aim: {case.aim}\n{only}"


def _measured(cases: Sequence[Case], *, quick: bool) -> list[Result]:
    results: list[Result] = []
    with Place(quick=quick) as place:
        began = time.monotonic()
        for result in frame.measure(cases, place):
            results.append(result)
            sys.stderr.write(f"{result.case.name}: {time.monotonic() - began:.0f} s\n")
            began = time.monotonic()
    return results


def _end(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    # Database and workspace end with us; SIGINT as well, for a shell that starts us in the background has it ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)
    main()
