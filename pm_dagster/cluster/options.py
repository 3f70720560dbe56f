"""The entry's options. Put here: what may be said on its command line. Keep out: what is made of it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from pm_dagster.cluster.messages import Ended
from pm_dagster.config.settings import MOST_ROWS

_DESCRIPTION = """Do one pass over the waiting jobs: start or repair what waits, and mark it SCHEDULED.
The settings are environment variables (PM_*, DATABRICKS_*), the same as for `pm`."""
_EXIT = """Ends with 0 when the pass ran (refused rows are in its numbers), 1 when it could not, or its report file
could not be written, 2 for wrong usage. SIGTERM ends the pass cleanly."""


@dataclass(frozen=True)
class Options:
    """``read`` is jdbc or driver, ``report`` the file to write, ``limit`` the most rows; None: none, as configured."""

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
    """The options. Wrong usage prints the usage on standard error and raises Ended; --help SystemExit(0)."""
    parser = _Parser(prog="process_manager.py", description=_DESCRIPTION, epilog=_EXIT, allow_abbrev=False)
    parser.add_argument(
        "--read",
        choices=("jdbc", "driver"),
        default="jdbc",
        help="read the view by Spark's JDBC source (the default), or by the plain driver, which needs no Spark",
    )
    parser.add_argument(
        "--report",
        type=_workbook,
        metavar="FILE.xlsx",
        help="write a row per waiting job, and the numbers, into this file; its folder must exist",
    )
    parser.add_argument("--limit", type=_count, metavar="N", help="take at most N rows, oldest first")
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
