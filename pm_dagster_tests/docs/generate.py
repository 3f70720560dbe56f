"""Writes the parts of the docs that come from the code: ``python -m pm_dagster_tests.docs.generate``.

A page holds its part between ``<!-- NAME -->`` and ``<!-- /NAME -->``.
"""

from __future__ import annotations

import inspect
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from importlib.resources import files
from pathlib import Path

import click
import psycopg2

from pm_dagster import errors
from pm_dagster.cli.app import _group
from pm_dagster.config.settings import SETTINGS, settings_from
from pm_dagster.ledger.migrate import initialise
from pm_dagster.ledger.schema import LEDGER_SCHEMA
from pm_dagster.sandbox.postgres import EmbeddedPostgres
from pm_dagster.sandbox.workspace import LocalWorkspace
from pm_dagster_tests.docs import ROOT, imports, log_events
from pm_dagster_tests.docs.json_objects import keys_of_commands

REFERENCE = ROOT / "docs" / "reference"
HOW_TO_WRITE = "run: python -m pm_dagster_tests.docs.generate"
_COLUMNS = """
SELECT table_name, column_name, data_type, is_nullable = 'YES' FROM information_schema.columns
WHERE table_schema = %s ORDER BY table_name, ordinal_position
"""


def _table(titles: list[str], rows: list[list[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _default(value: object) -> str:
    if isinstance(value, tuple):
        parts = ["=".join(part) if isinstance(part, tuple) else str(part) for part in value]
        return f"`{','.join(parts)}`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, float):
        return f"`{value:g}`"
    return f"`{value}`" if value != "" else ""


def settings() -> str:
    """One row for each setting."""
    rows = [[f"`{variable}`", _default(default), text] for variable, default, text in SETTINGS]
    return _table(["variable", "default", "meaning"], rows)


def _commands(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield f"{path} {name}", command
        if isinstance(command, click.Group):
            yield from _commands(command, f"{path} {name}")


def _parameter(parameter: click.Parameter) -> list[str]:
    if isinstance(parameter, click.Option):
        names = ", ".join(f"`{name}`" for name in parameter.opts)
        kind = "" if parameter.is_flag else parameter.make_metavar(click.Context(click.Command("pm")))
        return [names, f"`{kind}`" if kind else "", (parameter.help or "").replace("`", "")]
    shown = parameter.metavar or (parameter.name or "").upper()
    return [f"`{shown}`", "", "required" if parameter.required else ""]


def _command(path: str, command: click.Command) -> str:
    about = inspect.cleandoc(command.help or "").replace("\b\n", "") if path != "pm" else ""
    parameters = [each for each in command.params if not getattr(each, "hidden", False)]
    table = _table(["option", "value", "meaning"], [_parameter(each) for each in parameters]) if parameters else ""
    return "\n\n".join(part for part in (f"## {path}", about, table) if part)


def commands() -> str:
    """One section for each command, with its options."""
    return "\n\n".join(_command(path, each) for path, each in [("pm", _group), *_commands(_group, "pm")])


def _kinds(kind: type[errors.ProcessManagerError], depth: int = 0) -> Iterator[tuple[type[Exception], int]]:
    yield kind, depth
    for below in sorted(kind.__subclasses__(), key=lambda each: each.__name__):
        if below.__module__ == errors.__name__:
            yield from _kinds(below, depth + 1)


def _who(kind: type[Exception]) -> str:
    if issubclass(kind, errors.Unavailable):
        return "Process Manager"
    return "you" if issubclass(kind, errors.NeverAgain) else ""


def error_tree() -> str:
    """One row for each class of errors.py, indented by its place in the tree."""
    rows = [
        [
            "&nbsp;" * 4 * depth + f"`{kind.__name__}`",
            inspect.cleandoc(kind.__doc__ or "").split("\n")[0].replace("``", "`"),
            _who(kind),
        ]
        for kind, depth in _kinds(errors.ProcessManagerError)
    ]
    return _table(["error", "means", "who tries again"], rows)


def _meanings(page: str) -> dict[tuple[str, str], str]:
    """What a page says of each row of its tables, in their last column, by heading and name."""
    found, table = {}, ""
    for line in page.splitlines():
        if line.startswith("## "):
            table = line.removeprefix("## ").strip("` ")
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| `"):
            found[table, cells[0].strip("`")] = cells[-1].strip("| ")
    return found


def ledger(page: str, database_url: str) -> str:
    """One section for each table of the ledger in this database; the meanings are those that the page has."""
    initialise(settings_from({"PM_POSTGRES_URL": database_url}))
    meanings = _meanings(page)
    with closing(psycopg2.connect(database_url)) as connection, connection.cursor() as cursor:
        cursor.execute(_COLUMNS, [LEDGER_SCHEMA])
        columns = cursor.fetchall()
    sections = []
    for table in dict.fromkeys(row[0] for row in columns):
        rows = [
            [f"`{name}`", kind, "yes" if empty else "", meanings.get((table, name), "")]
            for owner, name, kind, empty in columns
            if owner == table
        ]
        sections.append(f"## {table}\n\n" + _table(["column", "type", "may be null", "meaning"], rows))
    return "\n\n".join(sections)


def json_objects(page: str, keys: Mapping[str, Mapping[str, str]]) -> str:
    """One section for each command with the keys of its object; the meanings are those that the page has."""
    meanings = _meanings(page)
    sections = []
    for command, types in keys.items():
        rows = [[f"`{path}`", kind, meanings.get((command, path), "")] for path, kind in types.items()]
        sections.append(f"## {command}\n\n" + _table(["key", "type", "meaning"], rows))
    return "\n\n".join(sections)


def events(page: str, product: Path = log_events.PRODUCT) -> str:
    """One row for each log event; the meanings are those that the page has."""
    meanings = _meanings(page)
    rows = [
        [
            f"`{name}`",
            ", ".join(sorted(event.levels)),
            ", ".join(_field(each) for each in event.fields),
            meanings.get(("Events", name), ""),
        ]
        for name, event in log_events.log_events(product).items()
    ]
    return _table(["event", "level", "fields", "meaning"], rows)


def _field(name: str) -> str:
    return "the keys of [`pm dispatch --json`](json.md#pm-dispatch)" if name.startswith("**") else f"`{name}`"


def decisions(folder: Path = ROOT / "docs" / "adr") -> str:
    """One row for each decision, with the status and date that its page has."""
    rows = []
    for path in sorted(folder.glob("0*.md")):
        title, _, status = path.read_text(encoding="utf-8").split("\n")[:3]
        found = re.fullmatch(r"Status: (.+)\. Date: (\d{4}-\d\d-\d\d)\.", status)
        assert found, f"{path.name}: the third line is `Status: accepted. Date: 2026-01-31.`"
        rows.append([f"[{title.removeprefix('# ')}]({path.name})", found[1], found[2]])
    return _table(["decision", "status", "date"], rows)


def layout() -> str:
    """One row for each package: what it imports."""
    return _table(["package", "imports"], imports.table())


#: What is generated from the code alone, by the name of its page.
PARTS: dict[str, Callable[[], str]] = {
    "settings": settings,
    "commands": commands,
    "errors": error_tree,
    "events": lambda: events(_page("events")),
    "decisions": decisions,
    "layout": layout,
}


def part_of(page: str, name: str) -> str:
    """What the page holds between the marks of this name."""
    return page.partition(f"<!-- {name} -->\n")[2].partition(f"\n<!-- /{name} -->")[0].strip("\n")


#: Where a part stands that is on no page of the reference with its name.
_ELSEWHERE = {
    "decisions": ROOT / "docs" / "adr" / "index.md",
    "layout": ROOT / "docs" / "explanation" / "layout.md",
}


def path_of(name: str) -> Path:
    """The page that holds a part."""
    return _ELSEWHERE.get(name, REFERENCE / f"{name}.md")


def _page(name: str) -> str:
    return path_of(name).read_text(encoding="utf-8")


def _write(name: str, text: str) -> None:
    path = path_of(name)
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    page = _page(name)
    before, after = page.partition(begin)[0], page.partition(end)[2]
    path.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")


def main() -> None:
    """Write all of it."""
    for name, made in PARTS.items():
        _write(name, made())
    imports.PICTURE.write_text(imports.picture(), encoding="utf-8")
    schema = files("pm_dagster.sandbox").joinpath("control_schema.sql").read_text()
    with tempfile.TemporaryDirectory() as folder, EmbeddedPostgres(Path(folder) / "pg", durable=False) as server:
        urls = [server.create_database(name) for name in ("ledger", "json")]
        for url in urls:
            with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
                cursor.execute(schema)
                connection.commit()
        _write("ledger", ledger(_page("ledger"), urls[0]))
        with LocalWorkspace() as workspace:
            keys = keys_of_commands(urls[1], workspace)
        _write("json", json_objects(_page("json"), keys))


if __name__ == "__main__":
    main()
