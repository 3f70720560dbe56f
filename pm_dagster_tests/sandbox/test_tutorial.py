"""The commands of the tutorial, in their order, as a newcomer types them: in an empty home, with nothing set."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pm_dagster_tests.docs import ROOT

_PAGE = ROOT / "docs" / "tutorial" / "sandbox.md"
_SECONDS = 420
#: Runs until it is ended; the page says to leave it running.
_STAYS = "make dev"
_READY = "for _ in $(seq 240); do .venv/bin/pm sandbox env >/dev/null 2>&1 && break; sleep 0.5; done"


def _commands() -> Iterator[str]:
    for block in re.findall(r"(?ms)^```console\n(.*?)^```", _PAGE.read_text(encoding="utf-8")):
        yield from block.splitlines()


def _recipe(target: str) -> str:
    """What a target of the Makefile does; ``make`` itself would do it in the checkout."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (recipe,) = re.findall(rf"(?m)^{target}:.*\n\t(.*)$", makefile)
    return str(recipe).replace("$(BIN)", ".venv/bin")


def _script() -> str:
    lines = ["set -eu"]
    for command in _commands():
        made = re.fullmatch(r"make (\w+)", command)
        run = _recipe(made[1]) if made else command
        lines.append(f"echo '$ {run.split()[0]} {len(lines)}'" if "'" in run else f"echo '$ {run}'")
        # Its own group: what it started ends with it.
        lines += [f"set -m; {run} >up.log 2>&1 & up=$!; set +m", _READY] if command == _STAYS else [run]
    return "\n".join([*lines, "kill -INT $up; wait $up || true", ""])


@pytest.mark.slow
def test_the_tutorial_from_its_first_command_to_its_last(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / ".venv").symlink_to(Path(sys.prefix))
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8"}
    with subprocess.Popen(
        ["/bin/bash", "-c", _script()],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            said, _ = process.communicate(timeout=_SECONDS)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, said[-4000:]
    _has_what_the_page_tells(said)


def _has_what_the_page_tells(said: str) -> None:
    page = " ".join(_PAGE.read_text(encoding="utf-8").split())
    for count, status in re.findall(r"(\d+) are (SCHEDULED|SUCCESS|FAILED)", page):
        assert f"{count} {status}" in said
    new, repair, refused = (said.split(f"$ pm explain {row}\n")[1].partition("\n$ ")[0] for row in (1, 12, 29))
    assert "run-now" in new
    assert "runs/repair" not in new
    assert "runs/get" in repair
    assert "FAILED" in refused
    last = said.split("$ pm explain 29\n")[2]
    assert "Generation 1" in last
    assert "Generation 2" in last
    assert "SCHEDULED" in last
