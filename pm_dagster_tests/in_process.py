"""`pm` in the process of the tests: what a new interpreter would do, without the second that it takes to start.

Signals, kills, encodings of streams and what an import brings along need a process of their own; tests of those start
one.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import pytest

from pm_dagster.cli import main as pm_main
from pm_dagster.config import masking


def run_pm(*arguments: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run `pm` to its end, with these variables and no others; gives exit code, standard output and standard error."""
    return run(pm_main, "pm", *arguments, environment=environment)


def run(
    main: Callable[[], object], name: str, *arguments: str, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run the entry point ``main`` of a program as its own process would, and give what came of it."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    code: object = 0
    with pytest.MonkeyPatch.context() as patch, _signals_and_logging_put_back():
        _become(patch, environment)
        patch.setattr(sys, "argv", [name, *arguments])
        patch.setattr(sys, "stdin", io.StringIO())
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        # A process begins without the secrets of another.
        patch.setattr(masking, "_registered", {})
        try:
            main()
        except SystemExit as end:
            code = end.code
    if isinstance(code, str):
        err.write(f"{code}\n")
    said = [stream.detach().getvalue().decode() for stream in (out, err)]
    return subprocess.CompletedProcess([name, *arguments], _number(code), *said)


def _number(code: object) -> int:
    """The exit code that the interpreter makes of the argument of SystemExit."""
    if code is None:
        return 0
    return code if isinstance(code, int) else 1


def _become(patch: pytest.MonkeyPatch, environment: Mapping[str, str]) -> None:
    for name in os.environ.keys() - environment.keys():
        patch.delenv(name)
    for name, value in environment.items():
        patch.setenv(name, value)


@contextmanager
def _signals_and_logging_put_back() -> Iterator[None]:
    """`pm` sets both for its whole process."""
    interrupt = signal.getsignal(signal.SIGINT)
    loggers = [logging.getLogger(), logging.getLogger("pm_dagster")]
    before = [(each, list(each.handlers), each.level, each.propagate) for each in loggers]
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, interrupt)
        for each, handlers, level, propagate in before:
            each.handlers[:] = handlers
            each.setLevel(level)
            each.propagate = propagate
