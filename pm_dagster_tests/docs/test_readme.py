"""The README is true: its table comes from the code, its commands and files exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pm_dagster.sandbox.seed import CASES
from pm_dagster_tests.docs.settings_table import README, with_table

ROOT = README.parent
TEXTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md")]


def test_the_table_of_settings_is_current() -> None:
    text = README.read_text(encoding="utf-8")
    assert with_table(text) == text, "run: python -m pm_dagster_tests.docs.settings_table"


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_every_make_target_it_names_exists(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"(?m)(?:`|^)make ([a-z-]+)", path.read_text(encoding="utf-8"))) <= targets


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_every_file_it_links_to_exists(path: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8"))
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_demo_has_as_many_jobs_as_it_says() -> None:
    (told,) = re.findall(r"make demo .* (\d+) waiting jobs", README.read_text(encoding="utf-8"))
    assert int(told) == sum(case.rows for case in CASES)
