"""The documentation is true: what it generates is current, and the commands, links and files that it names exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from pm_dagster import errors
from pm_dagster.cli.app import _group
from pm_dagster.config.settings import SETTINGS
from pm_dagster.sandbox.seed import CASES
from pm_dagster.sandbox.workspace import LocalWorkspace
from pm_dagster_tests.docs import ROOT, generate
from pm_dagster_tests.docs.json_objects import keys_of_commands

#: The proof is written by `make chaos`, and CHANGELOG tells of names that were.
TEXTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted(each for each in (ROOT / "docs").rglob("*.md") if each.name != "proof.md"),
]
every_text = pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
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


@every_text
def test_every_make_target_it_names_exists(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"(?m)(?:`|^)make ([a-z-]+)", path.read_text(encoding="utf-8"))) <= targets


@every_text
def test_every_file_it_links_to_exists(path: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    assert [link for link in links if not (path.parent / link).exists()] == []


@every_text
def test_every_path_it_names_exists(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    named = {each for each in re.findall(_PATH, text) if "/" in each}
    missing = [
        each
        for each in named
        if not each.startswith(_MADE_LATER) and not any((base / each).exists() for base in (*_BASES, path.parent))
    ]
    assert missing == []


@every_text
def test_every_command_of_pm_it_names_exists_with_its_options(path: Path) -> None:
    for line in _code(path.read_text(encoding="utf-8")):
        found = re.match(r"(?:\.venv/bin/)?pm ([a-z].*|--.*)$", line.split(" #")[0].strip())
        if not found:
            continue
        command: click.Command = _group
        for word in shlex.split(found[1]):
            options = {name for each in command.params for name in each.opts} | {"--help"}
            if word.startswith("--"):
                assert word.split("=")[0] in options, line
            elif isinstance(command, click.Group) and word != "...":
                below = command.get_command(click.Context(command), word)
                assert below is not None, line
                command = below


@every_text
def test_every_variable_it_names_is_one(path: Path) -> None:
    known = {variable for variable, _, _ in SETTINGS} | _OTHER_VARIABLES
    named = set(re.findall(r"`(PM_[A-Z_]+[A-Z])(?:=[^`]*)?`", path.read_text(encoding="utf-8")))
    assert named <= known


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "adr").glob("0*.md")), ids=lambda path: path.name)
def test_every_decision_has_its_parts_and_a_measurement(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert re.findall(r"(?m)^## (.*)$", text) == ["Context", "Decision", "Measurement"]
    assert text.startswith(f"# {int(path.name[:4])}. ")
    measured = text.partition("## Measurement\n\n")[2].strip()
    assert re.search(r"\d|Before, |None (is|was) possible|None in |a committed table was lost", measured), measured


def test_the_readme_is_for_somebody_in_a_hurry() -> None:
    most = 120
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < most


@pytest.mark.parametrize("name", ["README.md", "docs/tutorial/sandbox.md"])
def test_the_demo_has_as_many_jobs_as_it_says(name: str) -> None:
    (told,) = re.findall(r"\b(\d+) waiting jobs", (ROOT / name).read_text(encoding="utf-8"))
    assert int(told) == sum(case.rows for case in CASES)
