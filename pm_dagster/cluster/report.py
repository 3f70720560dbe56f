"""What the cluster's program tells of a dispatch: a table on standard output, and an Excel file.

Both show the same rows: one for each waiting job that was read, and for each entry that was rescued. The file
needs pandas (1.5.3, the cluster's, or newer), xlsxwriter and pathvalidate; the table needs nothing.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from pm_dagster.config.masking import scrubbed
from pm_dagster.dispatch.model import Outcome
from pm_dagster.dispatch.report import Report, ReportRow
from pm_dagster.errors import ConfigurationError, ProcessManagerError
from pm_dagster.logs import fields
from pm_dagster.text import escape_controls

if TYPE_CHECKING:
    import pandas as pd

_log = logging.getLogger(__name__)

# ---- the rows

#: What a person has to look at comes first.
_ORDER = (
    Outcome.QUARANTINED,
    Outcome.DEFERRED,
    Outcome.LEFT,
    Outcome.WITHDRAWN,
    Outcome.ADOPTED,
    Outcome.ACCEPTED,
)


def rows_to_show(report: Report) -> list[ReportRow]:
    """The rows of a report without secrets, in the order in which a person wants to see them."""
    rows = [_without_secrets(row) for row in (*report.rows, *report.unsent)]
    return sorted(rows, key=lambda row: (_ORDER.index(row.outcome), row.run_id or 0))


def _without_secrets(row: ReportRow) -> ReportRow:
    """The workspace's own credentials are out already; another secret may stand in any text from outside."""
    parameters = {name: scrubbed(text) for name, text in row.parameters.items()}
    url = row.page_url and scrubbed(row.page_url)
    return replace(row, reason=scrubbed(row.reason), page_url=url, parameters=parameters)


# ---- on standard output

_MOST_SHOWN = 60
_REASON_WIDTH = 90
_TITLES = ("run id", "branch", "outcome", "status", "Databricks run", "reason")


def table(rows: Sequence[ReportRow]) -> str:
    """The first rows in plain text, and how many more there are: the cluster has no library for tables."""
    cells = [_TITLES, *(_cells(row) for row in rows[:_MOST_SHOWN])]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_TITLES) - 1)]
    shown = ["  ".join([*map(str.ljust, line[:-1], widths), line[-1]]).rstrip() for line in cells]
    more = rows[_MOST_SHOWN:]
    if more:
        worst = more[0].outcome.value
        shown.append(f"... and {len(more)} more rows, none worse than {worst}; --report FILE.xlsx writes all")
    return "\n".join(shown)


def _cells(row: ReportRow) -> tuple[str, ...]:
    reason = escape_controls(row.reason)
    return (
        "-" if row.run_id is None else str(row.run_id),
        row.branch.value,
        row.outcome.value,
        escape_controls(row.control_status or ""),
        "" if row.databricks_run_id is None else str(row.databricks_run_id),
        reason if len(reason) <= _REASON_WIDTH else f"{reason[: _REASON_WIDTH - 3]}...",
    )


def say(text: str) -> None:
    """Print text, with escapes for what the output's encoding lacks: an ASCII output must not end the dispatch."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)  # noqa: T201 it is the program's output
    except OSError as error:
        _log.warning("output cannot be written", extra=fields(error=error.strerror or type(error).__name__))
        # The interpreter would try again at its end, and fail.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# ---- in a file

_COLUMNS = ("run_id", "branch", "outcome", "reason", "status", "databricks_run_id", "repair_id", "page_url", "since")
_ROWS, _NUMBERS = "waiting jobs", "numbers"
#: Text stays text: a file name may begin with "=", an id has more digits than Excel's numbers keep (15).
_WORKBOOK = {"strings_to_formulas": False, "strings_to_urls": False, "strings_to_numbers": False, "in_memory": True}
#: Of a cell, and of a link in it: https://support.microsoft.com/office/1672b34d-7043-467e-8e27-269d656771c3
_TEXT_LIMIT, _LINK_LIMIT = 32_767, 2_079
#: Of links in a sheet: https://xlsxwriter.readthedocs.io/worksheet.html#worksheet-write-url
_MOST_LINKS = 65_530
#: Of a file name less its suffix; most file systems take 255 bytes.
_NAME_LIMIT = 240


class ReportFile:
    """A file that can be written later: libraries and place are checked when this is made, before a dispatch begins.

    Args:
        wanted: The path that was asked for. Its name is made safe; its folder is taken as it is, and must exist.

    Raises:
        ConfigurationError: A library is missing, or the place cannot be used; the text says which.
    """

    def __init__(self, wanted: Path) -> None:
        _demand_libraries()
        try:
            _demand_place(wanted.parent)
            # Through a link, so that the link stays and what it names is replaced.
            self.path = Path(os.path.realpath(wanted.with_name(_safe_name(wanted))))
            _demand_place(self.path.parent)
            is_folder = self.path.is_dir()
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"--report: {str(wanted)!a} cannot be used: {type(error).__name__}") from None
        if is_folder:
            raise ConfigurationError(f"--report: {self.path} is a folder")

    def write(self, report: Report, rows: Sequence[ReportRow]) -> None:
        """Write the file, whole or not at all. Raises ProcessManagerError when that fails."""
        fresh = self.path.with_name(f".{uuid4().hex}.tmp")
        try:
            with fresh.open("xb") as file:
                file.write(_workbook(report, rows))
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self.path)
        except Exception as error:
            raise ProcessManagerError(f"the report file {self.path} could not be written: {error}") from error
        finally:
            fresh.unlink(missing_ok=True)


def _demand_libraries() -> None:
    try:
        import pandas as pd  # noqa: F401, PLC0415 only where a report file is asked for
        import pathvalidate  # noqa: F401, PLC0415 same
        import xlsxwriter  # noqa: F401, PLC0415 same
    except ImportError as error:
        raise ConfigurationError(
            f"--report needs pandas, xlsxwriter and pathvalidate ({error}): install them, or leave --report out"
        ) from None


def _demand_place(folder: Path) -> None:
    if not folder.is_dir():
        raise ConfigurationError(f"--report: there is no folder {folder}; make it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigurationError(f"--report: the folder {folder} cannot be written to")


def _safe_name(wanted: Path) -> str:
    from pathvalidate import sanitize_filename  # noqa: PLC0415 see above

    stem = str(sanitize_filename(wanted.stem, platform="universal", max_len=_NAME_LIMIT)).strip()
    if not stem.strip("."):
        raise ConfigurationError(f"--report: no character of the name {wanted.name!r} can stand in a file name")
    return f"{stem}.xlsx"


def _workbook(report: Report, rows: Sequence[ReportRow]) -> bytes:
    import pandas as pd  # noqa: PLC0415 see above

    buffer = BytesIO()
    with pd.ExcelWriter(buffer, engine="xlsxwriter", engine_kwargs={"options": _WORKBOOK}) as writer:
        sheet = _frame(rows)
        sheet.to_excel(writer, sheet_name=_ROWS, index=False)
        numbers = pd.DataFrame(list(_numbers("", report.as_json())), columns=["number", "value"])
        numbers.to_excel(writer, sheet_name=_NUMBERS, index=False)
        _finish(writer, sheet)
    return buffer.getvalue()


def _frame(rows: Sequence[ReportRow]) -> pd.DataFrame:
    """A column of text for each of ``_COLUMNS``, and one for each job parameter that a row has."""
    import pandas as pd  # noqa: PLC0415 see above

    names = list(dict.fromkeys(name for row in rows for name in row.parameters))
    cells = [[_text(value) for value in _values(row, names)] for row in rows]
    return pd.DataFrame(cells, columns=[*_COLUMNS, *(f"parameter {name}" for name in names)], dtype=object)


def _values(row: ReportRow, parameters: Iterable[str]) -> list[Any]:
    own = (
        row.run_id,
        row.branch,
        row.outcome,
        row.reason,
        row.control_status,
        row.databricks_run_id,
        row.repair_id,
        row.page_url,
        row.since,
    )
    return [*own, *(row.parameters.get(name) for name in parameters)]


def _text(value: object) -> str | None:
    return None if value is None else str(value)[:_TEXT_LIMIT]


def _numbers(group: str, values: dict[str, Any]) -> Iterable[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _numbers(f"{name}, ", value)
        else:
            yield f"{group}{name}", value


def _finish(writer: Any, rows: pd.DataFrame) -> None:  # noqa: ANN401 pandas' writer has no type of its own for this engine
    """Widths, a header that stays, links that open."""
    for name, widths in ((_ROWS, (20, 9, 13, 60, 13, 20, 20, 40, 26)), (_NUMBERS, (24, 12))):
        sheet = writer.sheets[name]
        sheet.freeze_panes(1, 0)
        for column, width in enumerate(widths):
            sheet.set_column(column, column, width)
    column = _COLUMNS.index("page_url")
    links = [(place, url) for place, url in enumerate(rows["page_url"], 1) if url and _is_link(url)]
    # The rest stays text.
    for place, url in links[:_MOST_LINKS]:
        writer.sheets[_ROWS].write_url(place, column, url)


def _is_link(text: str) -> bool:
    return text.startswith(("https://", "http://")) and len(text) <= _LINK_LIMIT
