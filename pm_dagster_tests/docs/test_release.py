"""What `make release-check` refuses, and that the files for GitHub and pre-commit can be read."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

from pm_dagster_tests.release_check import ROOT, NotReleasableError, demand_contents, demand_metadata, demand_told

_METADATA = """Metadata-Version: 2.4
Name: process-manager
Version: 1.2.3
License-Expression: Apache-2.0
License-File: LICENSE

What it is.
"""


def _wheel(folder: Path, metadata: str, *names: str) -> Path:
    path = folder / "made.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("process_manager-1.2.3.dist-info/METADATA", metadata)
        for name in names:
            archive.writestr(name, "")
    return path


def test_the_changelog_tells_of_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    # Between two releases; the release check itself takes none that are still collected.
    told = re.sub(r"(?ms)\A(.*?)^## Unreleased$.*?(?=^## )", r"\1", (ROOT / "CHANGELOG.md").read_text())
    demand_told(version, told)


@pytest.mark.parametrize("text", ["", "## Unreleased\n\n## 1.2.3 - 2026-01-01", "## 1.2.3", "## 1.2.4 - 2026-01-01"])
def test_a_version_that_the_changelog_does_not_tell_of_is_refused(text: str) -> None:
    with pytest.raises(NotReleasableError, match=r"CHANGELOG.md begins with"):
        demand_told("1.2.3", text)


def test_metadata_is_read(tmp_path: Path) -> None:
    demand_metadata(_wheel(tmp_path, _METADATA), "1.2.3")
    with pytest.raises(NotReleasableError, match="version"):
        demand_metadata(_wheel(tmp_path, _METADATA), "1.2.4")
    with pytest.raises(NotReleasableError, match="lacks its description"):
        demand_metadata(_wheel(tmp_path, _METADATA.replace("License-File: LICENSE\n", "")), "1.2.3")
    direct = _METADATA.replace("License-File", "Requires-Dist: a @ file:///a.whl\nLicense-File")
    with pytest.raises(NotReleasableError, match="no package index"):
        demand_metadata(_wheel(tmp_path, direct), "1.2.3")


def test_a_file_that_is_missing_or_too_many_is_named(tmp_path: Path) -> None:
    tracked = ["pm_dagster/a.sql", "Makefile"]
    sdist = tmp_path / "made.tar.gz"
    with tarfile.open(sdist, "w:gz") as tar:
        for name in tracked:
            tar.addfile(tarfile.TarInfo(f"process_manager-1.2.3/{name}"))
    demand_contents(sdist, _wheel(tmp_path, _METADATA, "pm_dagster/a.sql"), tracked)
    with pytest.raises(NotReleasableError, match=r"lacks \['pm_dagster/a.sql'\]"):
        demand_contents(sdist, _wheel(tmp_path, _METADATA), tracked)
    with pytest.raises(NotReleasableError, match=r"should not have \['tests/b.py'\]"):
        demand_contents(sdist, _wheel(tmp_path, _METADATA, "pm_dagster/a.sql", "tests/b.py"), tracked)
    with pytest.raises(NotReleasableError, match=r"sdist lacks \['docs/c.md'\]"):
        demand_contents(sdist, _wheel(tmp_path, _METADATA, "pm_dagster/a.sql"), [*tracked, "docs/c.md"])


def test_the_hooks_of_pre_commit_can_be_read_and_run_what_is_there() -> None:
    path = ROOT / ".pre-commit-config.yaml"
    subprocess.run([sys.executable, "-m", "pre_commit", "validate-config", str(path)], check=True)
    for hook in yaml.safe_load(path.read_text())["repos"][0]["hooks"]:
        assert (Path(sys.executable).parent / Path(hook["entry"].split()[0]).name).exists(), hook["id"]


def _targets_of_the_night() -> list[str]:
    nightly = yaml.safe_load((ROOT / ".github/workflows/nightly.yml").read_text())
    targets: list[str] = nightly["jobs"]["nightly"]["strategy"]["matrix"]["target"]
    return targets


def test_every_make_target_of_the_workflows_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in _targets_of_the_night():
        assert f"\n{target}:" in makefile, target


def test_the_tests_of_every_marker_are_run_by_the_gate_or_at_night() -> None:
    markers = [each.partition(":")[0] for each in _settings_of_pytest()["markers"]]
    makefile = (ROOT / "Makefile").read_text()
    called = [
        *re.findall(r"^ *make ([a-z-]+)$", (ROOT / ".ci/run").read_text(), re.MULTILINE),
        *_targets_of_the_night(),
    ]
    recipes = [re.search(rf"^{target}:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE) for target in called]
    selected = [marked for recipe in recipes if recipe for marked in re.findall(r'-m "?(\w+)', recipe[1])]
    assert "test" in called
    assert sorted(markers) == sorted({*selected} & {*markers})


def test_make_test_leaves_out_nothing_but_what_is_marked() -> None:
    (left_out,) = re.findall(r"^UNMARKED := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    markers = [each.partition(":")[0] for each in _settings_of_pytest()["markers"]]
    assert sorted(left_out.split(" and ")) == sorted(f"not {marker}" for marker in markers)


def _settings_of_pytest() -> dict[str, list[str]]:
    settings: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"][
        "ini_options"
    ]
    return settings


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda path: path.name)
def test_the_files_for_github_are_yaml(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text()), dict)


def test_every_path_with_an_owner_exists() -> None:
    lines = (ROOT / ".github/CODEOWNERS").read_text().splitlines()
    paths = [line.split()[0] for line in lines if line and not line.startswith("#")]
    assert len(paths) > 1
    assert all(path == "*" or (ROOT / path.strip("/")).exists() for path in paths)
