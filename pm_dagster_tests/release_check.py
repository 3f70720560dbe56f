"""Is what would be released whole: ``python -m pm_dagster_tests.release_check UV``, with the way to the program uv.

It builds the sdist and from it the wheel, reads their metadata and contents, and installs the wheel into an empty
environment, where it does the demo in an empty folder: whoever has only the wheel has no checkout.
"""

from __future__ import annotations

import email
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from pathlib import Path

from packaging.metadata import Metadata
from packaging.version import Version

ROOT = Path(__file__).parents[1]
_TOLD = 3000


class NotReleasableError(Exception):
    """What would be released is not whole; the text says what is missing and where."""


def main(uv: str) -> None:
    """Check everything. Raises NotReleasableError, or CalledProcessError with what a program printed."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    demand_told(version, (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    tracked = _run("git", "ls-files", at=ROOT).splitlines()
    with tempfile.TemporaryDirectory(prefix="pm-release-") as folder:
        place = Path(folder)
        # Started by root, the embedded Postgres runs as another user, who has to reach its programs.
        place.chmod(0o755)
        _run(uv, "build", "--quiet", "--out-dir", str(place / "dist"), at=ROOT)
        (sdist,) = (place / "dist").glob("*.tar.gz")
        (wheel,) = (place / "dist").glob("*.whl")
        demand_metadata(wheel, version)
        demand_contents(sdist, wheel, tracked)
        print(f"{wheel.name}: {wheel.stat().st_size // 1024} KiB, metadata and contents are whole")  # noqa: T201
        print(_demo(uv, wheel, place)[-_TOLD:])  # noqa: T201
    print(f"{version} can be released")  # noqa: T201


def demand_told(version: str, changelog: str) -> None:
    """Raise NotReleasableError unless the changelog has a dated section of this version, and none before it."""
    first = re.search(r"(?m)^## (.*)$", changelog)
    if first is None or not re.fullmatch(rf"\[?{re.escape(version)}\]? - \d{{4}}-\d\d-\d\d", first[1]):
        found = first[1] if first else "no section"
        raise NotReleasableError(f"CHANGELOG.md begins with {found!r}; `## {version} - YEAR-MONTH-DAY` is expected")


def demand_metadata(wheel: Path, version: str) -> None:
    """Raise NotReleasableError, or what ``packaging`` raises for fields that its standards do not allow."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (each for each in archive.namelist() if each.endswith(".dist-info/METADATA"))
        text = archive.read(name)
    metadata = Metadata.from_email(text, validate=True)
    if metadata.version != Version(version):
        raise NotReleasableError(f"the wheel says version {metadata.version}, pyproject.toml {version}")
    if not (metadata.description and metadata.license_expression and metadata.license_files):
        raise NotReleasableError("the wheel lacks its description, its licence or the licence's text")
    direct = [each for each in email.message_from_bytes(text).get_all("Requires-Dist", []) if " @ " in each]
    if direct:
        raise NotReleasableError(f"the wheel requires what is on no package index: {direct}")


def demand_contents(sdist: Path, wheel: Path, tracked: list[str]) -> None:
    """Raise NotReleasableError unless the wheel has the package and nothing else, and the sdist all that is tracked."""
    with zipfile.ZipFile(wheel) as archive:
        packed = {each for each in archive.namelist() if ".dist-info/" not in each}
    wanted = {each for each in tracked if each.startswith("pm_dagster/")}
    if packed != wanted:
        raise NotReleasableError(
            f"the wheel lacks {sorted(wanted - packed)} and should not have {sorted(packed - wanted)}"
        )
    with tarfile.open(sdist) as tar:
        given = {each.partition("/")[2] for each in tar.getnames()}
    lacking = sorted(set(tracked) - given)
    if lacking:
        raise NotReleasableError(f"the sdist lacks {lacking}")


def _demo(uv: str, wheel: Path, place: Path) -> str:
    """What the demo tells that runs from the wheel alone, with the newest dependencies that the wheel allows."""
    python = place / "venv" / "bin" / "python"
    _run(uv, "venv", "--quiet", "--python", sys.executable, str(place / "venv"), at=place)
    _run(
        uv,
        "pip",
        "install",
        "--quiet",
        "--python",
        str(python),
        f"process-manager[sandbox] @ {wheel.as_uri()}",
        at=place,
    )
    empty = place / "empty"
    empty.mkdir()
    _run(str(python), "-c", "import pm_dagster.definitions as d; d.defs.resolve_all_job_defs()", at=empty)
    _run(str(python.with_name("pm")), "--version", at=empty)
    return _run(str(python.with_name("pm")), "sandbox", "demo", at=empty)


def _run(*command: str, at: Path) -> str:
    """The output of a program that has none of this process' settings and no checkout on its path."""
    left_out = ("PM_", "DATABRICKS_", "ARM_", "PG", "DAGSTER_", "PYTHON", "VIRTUAL_ENV", "UV_PROJECT_ENVIRONMENT")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    done = subprocess.run(command, cwd=at, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.stderr.write(done.stdout[-_TOLD:] + done.stderr[-_TOLD:])
    done.check_returncode()
    return done.stdout


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except NotReleasableError as error:
        sys.exit(f"not to be released: {error}")
