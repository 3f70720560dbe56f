"""The command line of the cluster's program: its options, and how it ends."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from pm_dagster.config.settings import MOST_ROWS

_DESCRIPTION = """Do one dispatch: start or repair the Databricks run of each waiting job, and mark the job SCHEDULED.
The settings are environment variables (PM_*, DATABRICKS_*), the same as for `pm`."""
_EXIT = """Exit code 0: the dispatch ran; the report counts the refused rows. 1: it could not run, or its report file
could not be written. 2: wrong usage. SIGTERM stops the dispatch: it sends no more, records what was sent, and gives
the other rows back."""


class Ended(SystemExit):
    """Ends the program with an exit code. Databricks shows the text as the run's error; Python prints nothing."""

    def __init__(self, reason: str, status: int) -> None:
        super().__init__(reason)
        self.code = status


@dataclass(frozen=True)
class Options:
    """The options of one start.

    Attributes:
        read: How the view is read: jdbc or driver.
        report: The Excel file to write; None for none.
        limit: The most rows to take; None for the configured number.
    """

    read: str
    report: Path | None
    limit: int | None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self._print_message(f"{self.prog}: error: {message}\n", sys.stderr)
        # Not argparse's own error as the context: Databricks would show its stack.
        raise Ended(f"wrong usage: {message}", 2) from None


def read_options(arguments: Sequence[str]) -> Options:
    """The options.

    Raises:
        Ended: For wrong usage, with status 2, after the usage was printed on standard error.
        SystemExit: With status 0, after ``--help`` was answered.
    """
    parser = _Parser(prog="process_manager.py", description=_DESCRIPTION, epilog=_EXIT, allow_abbrev=False)
    parser.add_argument(
        "--read",
        choices=("jdbc", "driver"),
        default="jdbc",
        help="read the waiting jobs by Spark's JDBC source (the default), or by the plain driver, which needs no Spark",
    )
    parser.add_argument(
        "--report",
        type=_workbook,
        metavar="FILE.xlsx",
        help="write each waiting job and the numbers of the dispatch into this Excel file; its folder must exist",
    )
    parser.add_argument(
        "--limit", type=_count, metavar="N", help="take at most N rows, the oldest first (default: PM_DISPATCH_LIMIT)"
    )
    found = parser.parse_args(arguments)
    return Options(found.read, found.report, found.limit)


def _workbook(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() != ".xlsx":
        raise argparse.ArgumentTypeError(f"the name must end in .xlsx: {text!r}")
    return path


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > len(str(MOST_ROWS)) or not 1 <= int(text) <= MOST_ROWS:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 to {MOST_ROWS}: {text[:40]!r}")
    return int(text)
