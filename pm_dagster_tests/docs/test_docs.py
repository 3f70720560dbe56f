"""The documentation is true: what it generates is current, and the commands, links and files that it names exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Collection
from pathlib import Path

import click
import pytest

from pm_dagster import errors
from pm_dagster.cli.app import _group
from pm_dagster.config.settings import SETTINGS
from pm_dagster.sandbox.seed import CASES
from pm_dagster.sandbox.workspace import LocalWorkspace
from pm_dagster_tests.docs import ROOT, generate, imports
from pm_dagster_tests.docs.json_objects import keys_of_commands

#: The proof is written by `make chaos`, and CHANGELOG tells of names that were.
TEXTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted(each for each in (ROOT / "docs").rglob("*.md") if each.name != "proof.md"),
]
#: Where a path in a text may begin.
_BASES = (ROOT, ROOT / "pm_dagster", ROOT / "pm_dagster_tests")
_PATH = r"`([\w./-]+(?:/|\.(?:py|sql|yaml|yml|toml|md|jsonl|lock|svg)))`"
#: Variables that are no settings: read by the command line, the credentials and the tests.
_OTHER_VARIABLES = {"PM_SECRETS", "PM_DEBUG", "PM_ALLOW_SKIPS"}
_MADE_LATER = (".databricks/", "build/", ".venv", ".proof")


def _code(text: str) -> list[str]:
    """The commands of a text: what stands between backticks, and the lines of its console blocks."""
    blocks = re.findall(r"(?ms)^```console\n(.*?)^```", text)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"(?ms)^```.*?^```", "", text))
    return inline + [line for block in blocks for line in block.splitlines()]


@pytest.mark.parametrize("name", list(generate.PARTS))
def test_what_comes_from_the_code_is_current(name: str) -> None:
    page = generate.path_of(name).read_text(encoding="utf-8")
    assert generate.part_of(page, name) == generate.PARTS[name](), generate.HOW_TO_WRITE


def test_the_picture_of_the_imports_is_current() -> None:
    assert imports.PICTURE.read_text(encoding="utf-8") == imports.picture(), generate.HOW_TO_WRITE


def test_the_tables_of_the_ledger_are_current_and_every_column_is_explained(database_url: str) -> None:
    page = (generate.REFERENCE / "ledger.md").read_text(encoding="utf-8")
    assert generate.part_of(page, "ledger") == generate.ledger(page, database_url), generate.HOW_TO_WRITE
    assert _unexplained(page) == []


def test_the_keys_of_json_are_current_and_every_key_is_explained(database_url: str) -> None:
    """Every command prints them here, from rows of many kinds."""
    page = (generate.REFERENCE / "json.md").read_text(encoding="utf-8")
    with LocalWorkspace() as workspace:
        keys = keys_of_commands(database_url, workspace)
    assert generate.part_of(page, "json") == generate.json_objects(page, keys), generate.HOW_TO_WRITE
    assert _unexplained(page) == []


def test_every_log_event_is_explained() -> None:
    page = (generate.REFERENCE / "events.md").read_text(encoding="utf-8")
    assert _unexplained(page) == [], "write what the event means in docs/reference/events.md"


def test_an_event_that_the_page_does_not_have_is_seen(tmp_path: Path) -> None:
    (tmp_path / "new.py").write_text('_log.warning("a new event", extra=fields(run_id=1, pause=2.0))\n')
    row = "| `a new event` | warning | `run_id`, `pause` |  |"
    assert _unexplained(generate.events("", tmp_path)) == [row]


def _unexplained(page: str) -> list[str]:
    return [line for line in page.splitlines() if line.startswith("| `") and line.endswith("|  |")]


def test_every_error_is_in_the_tree() -> None:
    page = (generate.REFERENCE / "errors.md").read_text(encoding="utf-8")
    raised = [
        name
        for name, each in vars(errors).items()
        if isinstance(each, type) and issubclass(each, errors.ProcessManagerError)
    ]
    assert len(raised) > 1
    assert [name for name in raised if f"`{name}`" not in page] == []


def test_every_folder_of_tests_and_every_target_that_runs_them_is_on_their_page() -> None:
    page = (ROOT / "docs" / "explanation" / "tests.md").read_text(encoding="utf-8")
    folders = [each.parent.name for each in (ROOT / "pm_dagster_tests").glob("*/__init__.py")]
    targets = re.findall(r"^(test[a-z-]*|chaos|bench|coverage):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert len(folders) > 1
    assert [name for name in folders if f"`{name}/`" not in page] == []
    assert [name for name in targets if f"| `make {name}` |" not in page] == []


def _in_every_text(wrong: Callable[[Path, str], Collection[object]]) -> dict[str, list[object]]:
    """What is wrong in each text, by its path; all texts in one test, because sixty of each took longer to begin."""
    assert len(TEXTS) > 1
    found = {str(path.relative_to(ROOT)): list(wrong(path, path.read_text(encoding="utf-8"))) for path in TEXTS}
    return {name: items for name, items in found.items() if items}


def test_every_make_target_that_a_text_names_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert _in_every_text(lambda _, text: set(re.findall(r"(?m)(?:`|^)make ([a-z-]+)", text)) - targets) == {}


def test_every_file_that_a_text_links_to_exists() -> None:
    def missing(path: Path, text: str) -> list[str]:
        links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
        return [link for link in links if not (path.parent / link).exists()]

    assert _in_every_text(missing) == {}


def test_every_path_that_a_text_names_exists() -> None:
    def missing(path: Path, text: str) -> list[str]:
        return [
            each
            for each in set(re.findall(_PATH, text))
            if "/" in each
            and not each.startswith(_MADE_LATER)
            and not any((base / each).exists() for base in (*_BASES, path.parent))
        ]

    assert _in_every_text(missing) == {}


def _said_of_files(text: str) -> list[tuple[str, str]]:
    """Such as "`Outcome` of `pm_dagster/dispatch/model.py`"."""
    return re.findall(r"`([\w.]+)`(?:, `[\w.]+` or `[\w.]+`)? (?:of|in) `(pm_dagster[\w/]*\.py)`", text)


def test_every_name_that_a_text_says_a_file_has_is_there() -> None:
    def is_there(name: str, file: Path) -> bool:
        return file.exists() and bool(re.search(rf"\b{name.rpartition('.')[2]}\b", file.read_text(encoding="utf-8")))

    def missing(_: Path, text: str) -> list[tuple[str, str]]:
        return [(name, file) for name, file in _said_of_files(text) if not is_there(name, ROOT / file)]

    assert _in_every_text(missing) == {}
    for page in ("change-it.md", "add-a-call.md"):
        assert len(_said_of_files((ROOT / "docs" / "how-to" / page).read_text(encoding="utf-8"))) > 1


def test_every_command_of_pm_that_a_text_names_exists_with_its_options() -> None:
    assert _in_every_text(lambda _, text: [line for line in _code(text) if not _is_command(line)]) == {}


def _is_command(line: str) -> bool:
    """Whether a line is no command of pm, or one that there is."""
    found = re.match(r"(?:\.venv/bin/)?pm ([a-z].*|--.*)$", line.split(" #", maxsplit=1)[0].strip())
    command: click.Command = _group
    for word in shlex.split(found[1]) if found else ():
        options = {name for each in command.params for name in each.opts} | {"--help"}
        if word.startswith("--"):
            if word.split("=")[0] not in options:
                return False
        elif isinstance(command, click.Group) and word != "...":
            context = click.Context(command)
            below = command.get_command(context, word) if word in command.list_commands(context) else None
            if below is None:
                return False
            command = below
    return True


def test_a_command_that_is_not_there_is_seen() -> None:
    assert not _is_command("pm dispatsh")
    assert not _is_command("pm dispatch --limits 1")
    assert _is_command("pm dispatch --limit 1")


def test_every_variable_that_a_text_names_is_one() -> None:
    known = {variable for variable, _, _ in SETTINGS} | _OTHER_VARIABLES
    assert _in_every_text(lambda _, text: set(re.findall(r"`(PM_[A-Z_]+[A-Z])(?:=[^`]*)?`", text)) - known) == {}


def test_every_decision_has_its_parts_and_a_measurement() -> None:
    said = r"\d|Before, |None (is|was) possible|None in |a committed table was lost"

    def wrong(path: Path, text: str) -> list[str]:
        if path.parent.name != "adr" or path.name == "index.md":
            return []
        parts = re.findall(r"(?m)^## (.*)$", text) == ["Context", "Decision", "Measurement"]
        numbered = text.startswith(f"# {int(path.name[:4])}. ")
        measured = re.search(said, text.partition("## Measurement\n\n")[2])
        return [] if parts and numbered and measured else ["its parts, its number or its measurement"]

    assert _in_every_text(wrong) == {}


def test_the_readme_is_for_somebody_in_a_hurry() -> None:
    most = 120
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < most


@pytest.mark.parametrize("name", ["README.md", "docs/tutorial/sandbox.md"])
def test_the_demo_has_as_many_jobs_as_it_says(name: str) -> None:
    (told,) = re.findall(r"\b(\d+) waiting jobs", (ROOT / name).read_text(encoding="utf-8"))
    assert int(told) == sum(case.rows for case in CASES)
