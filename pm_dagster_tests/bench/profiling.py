"""Where the time of a case goes: the CPU time of the thread that decides, and what Postgres' statements take.

``python -m pm_dagster_tests.bench --profile mixed-16`` runs a case once under both, and prints them instead of figures.
A profiler makes a thread slower, and small functions look larger than they are: compare shares, before a change and
after it. The thread is the one that runs the dispatch in the bench's process, or the main thread of a process that the
case starts.
"""

from __future__ import annotations

import cProfile
import pstats
import re
import runpy
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar, cast
from uuid import uuid4

_Given = TypeVar("_Given")
_PARTS, _FUNCTIONS, _STATEMENTS, _WIDE = 15, 25, 20, 110
_ENTRY = re.compile(r"LOG:  duration: ([\d.]+) ms  statement: (.*)", re.DOTALL)
#: Each entry of the server's log begins with a time; the lines of a statement that follow do not.
_BEGIN = re.compile(r"(?m)^(?=\d{4}-\d\d-\d\d )")
_LITERAL = re.compile(r"E?'(?:[^'\\]|''|\\.)*'(?:::[\w\[\] ]+)?|\b\d+(?:\.\d+)?\b")
_LISTS = re.compile(r"(\((?:[^()]*\?[^()]*)\))(?:, ?\((?:[^()]*\?[^()]*)\))+")
_ARRAYS = re.compile(r"ARRAY\[[^\[\]]*\]")
_SETTINGS = re.compile(r"(?:SET LOCAL \w+ = [\w?]+; )+")
#: What ``pstats`` keeps for (file, line, function): primitive calls, calls, own seconds, those with callees, callers.
_Stats = dict[tuple[str, int, str], tuple[int, int, float, float, object]]


def profiled(work: Callable[[], _Given], folder: Path) -> _Given:
    """Do the work, and leave the CPU time of this thread in a file of the folder."""
    profile = cProfile.Profile(time.thread_time)
    try:
        return profile.runcall(work)
    finally:
        profile.dump_stats(folder / f"{uuid4().hex}.prof")


def command(folder: Path, arguments: Sequence[str]) -> list[str]:
    """The command line of Python, so that its main thread is profiled where it runs a part of the product."""
    ours = any(each in ("pm_dagster.cli", "pm_dagster.definitions") for each in arguments)
    if not ours or arguments[0] != "-m":
        return list(arguments)
    return ["-m", "pm_dagster_tests.bench.profiling", str(folder), *arguments[1:]]


def report(folder: Path, log: str) -> str:
    """What the profiles in the folder and the server's log say, for people.

    Args:
        folder: With the files of ``profiled``.
        log: Of the server, with ``log_min_duration_statement = 0``.
    """
    return "\n".join([*_functions(sorted(folder.glob("*.prof"))), "", *_statements(log)]) + "\n"


def _functions(files: Sequence[Path]) -> Iterator[str]:
    if not files:
        yield "no thread of ours was profiled"
        return
    found = pstats.Stats(*map(str, files))
    stats = cast("_Stats", found.stats)  # type: ignore[attr-defined]  # not in typeshed
    total = sum(own for _, _, own, _, _ in stats.values())
    yield f"CPU of the deciding thread: {total:.2f} s in {len(files)} dispatches, profiler included"
    parts: defaultdict[str, float] = defaultdict(float)
    for (file, _, function), (_, _, own, _, _) in stats.items():
        parts[_part(file, function)] += own
    largest = sorted(parts.items(), key=lambda each: -each[1])[:_PARTS]
    yield from (f"  {100 * own / total:5.1f} %  {part}" for part, own in largest)
    yield f"{'own s':>8} {'with callees':>13} {'calls':>9}  function"
    by_own = sorted(stats.items(), key=lambda each: -each[1][2])
    for (file, line, function), (_, calls, own, whole, _) in by_own[:_FUNCTIONS]:
        yield f"{own:8.3f} {whole:13.3f} {calls:9,}  {_short(file)}:{line} {function}"


def _part(file: str, function: str) -> str:
    """Our file, the library, or what is built in."""
    if file == "~":
        library = re.search(r"'([\w.]+)' objects|built-in method (\w+)\.", function)
        return "built in: " + (next(filter(None, library.groups())).partition(".")[0] if library else "others")
    short = _short(file)
    return short if short.startswith("pm_dagster") else short.partition("/")[0]


def _short(file: str) -> str:
    for mark in ("/site-packages/", "/pm_dagster/", "/pm_dagster_tests/"):
        _, found, after = file.rpartition(mark)
        if found:
            return after if mark == "/site-packages/" else mark[1:] + after
    return re.sub(r"^.*/lib/python[\d.]+/", "", file)


def _statements(log: str) -> Iterator[str]:
    times: defaultdict[str, list[float]] = defaultdict(list)
    for milliseconds, statement in _logged(log):
        times[normal(statement)].append(milliseconds)
    total = sum(map(sum, times.values()))
    yield f"Postgres: {total:,.0f} ms in {sum(map(len, times.values())):,} statements"
    yield f"{'ms':>9} {'share':>7} {'count':>8}  statement"
    for name, took in sorted(times.items(), key=lambda each: -sum(each[1]))[:_STATEMENTS]:
        yield f"{sum(took):9.1f} {100 * sum(took) / total:5.1f} % {len(took):8,}  {name[:_WIDE]}"


def _logged(log: str) -> Iterable[tuple[float, str]]:
    for entry in _BEGIN.split(log):
        if found := _ENTRY.search(entry):
            yield float(found[1]), found[2]


def normal(statement: str) -> str:
    """The statement without its values, on one line, so that equal ones are counted together."""
    bare = _SETTINGS.sub("SET LOCAL ...; ", " ".join(_LITERAL.sub("?", statement).split()))
    return _LISTS.sub(r"\1, ...", _ARRAYS.sub("ARRAY[...]", bare))


def main() -> None:
    """Run a module as ``python -m`` does, its main thread profiled: FOLDER MODULE ARGUMENTS..."""
    folder, module, *arguments = sys.argv[1:]
    sys.argv = [module, *arguments]
    profiled(lambda: runpy.run_module(module, run_name="__main__", alter_sys=True), Path(folder))


if __name__ == "__main__":
    main()
