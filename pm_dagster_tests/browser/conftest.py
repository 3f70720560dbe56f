"""The Dagster UI over a control table, a local workspace and waiting jobs of several kinds, and a browser in front.

Put here: servers and the browser, one of each for the whole session. Keep out: expectations.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import requests
from playwright.sync_api import Browser, Page, ViewportSize, expect, sync_playwright

from pm_dagster.sandbox.place import Place
from pm_dagster.sandbox.processes import Children, answers, free_port
from pm_dagster_tests.cli.shell import JOB, UNKNOWN_JOB, Shell

if TYPE_CHECKING:
    from collections.abc import Iterator

_CHECKOUT = Path(__file__).parents[2]
_DOCS = _CHECKOUT / "docs"
_PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
#: Read at once: the tests run without the PM_* variables of whoever starts them.
_WRITE = os.environ.get("PM_WRITE_SCREENSHOTS") == "1"
_START_SECONDS = 60.0
_PATIENCE_MILLISECONDS = 30_000


@dataclass(frozen=True)
class Site:
    """The UI's address, and the control table and workspace behind it."""

    url: str
    shell: Shell


@pytest.fixture(scope="session")
def site(clean_environment: None) -> Iterator[Site]:  # noqa: ARG001 it goes first
    """Dagster's webserver and daemon, with ten jobs waiting."""
    with (
        tempfile.TemporaryDirectory(prefix="pm-browser-") as folder,
        (place := Place(Path(folder))).opened() as sandbox,
        Children(sandbox.environment, place.logs) as children,
    ):
        shell = Shell(sandbox.settings.postgres_url, sandbox.workspace)
        _fill(shell)
        _without_welcome(place.dagster_home / "dagster.yaml")
        port = free_port(0)
        code = ["-w", str(_CHECKOUT / "workspace.yaml")]
        python = [sys.executable, "-m"]
        children.start("webserver", [*python, "dagster_webserver", "-h", "127.0.0.1", "-p", str(port), *code])
        # One after the other: two that make the tables of a fresh instance at once get in each other's way.
        _wait_for(children, port)
        children.start("daemon", [*python, "dagster._daemon", "run", *code])
        yield Site(f"http://127.0.0.1:{port}", shell)


def _fill(shell: Shell) -> None:
    shell.workspace.state.add_job("ingest_files", job_id=JOB, seconds=600.0, max_concurrent_runs=1000)
    shell.add(5)
    shell.add_repairs(2)
    shell.add_repairs(2, repairs=3)
    shell.add(1, job_id=UNKNOWN_JOB)


def _without_welcome(configuration: Path) -> None:
    """Dagster greets the first visitor of an instance with a dialog that covers the page."""
    text = configuration.read_text()
    if "\nnux:" not in text:
        configuration.write_text(f"{text}\nnux:\n  enabled: false\n")


def _knows_the_assets(port: int) -> bool:
    """Whether the UI has loaded the code location; before that it shows empty pages."""
    if not answers(port):
        return False
    query = {"query": "{ assetNodes { assetKey { path } } }"}
    reply = requests.post(f"http://127.0.0.1:{port}/graphql", json=query, timeout=_START_SECONDS)
    return "dispatched_jobs" in reply.text


def _wait_for(children: Children, port: int) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not _knows_the_assets(port):
        if name := children.ended():
            pytest.fail(f"Dagster's {name} ended:\n{children.log_of(name).read_text()[-2000:]}")
        if time.monotonic() > deadline:
            pytest.fail(f"Dagster's UI did not start:\n{children.log_of('webserver').read_text()[-2000:]}")
        time.sleep(0.1)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """The Chromium or Chrome of this machine; none is ever downloaded."""
    program = next(filter(None, map(shutil.which, _PROGRAMS)), None)
    if program is None:
        pytest.fail(f"no browser is installed: none of {', '.join(_PROGRAMS)} is on the PATH")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=_FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, patience: None) -> Iterator[Page]:  # noqa: ARG001 it must hold
    """A page of a visitor who has never been here."""
    page = new_page(browser)
    yield page
    page.context.close()


def new_page(browser: Browser) -> Page:
    """A page wide enough for the graph to show what is in its boxes."""
    size: ViewportSize = {"width": 1400, "height": 700}
    return browser.new_context(viewport=size).new_page()


def keep_screenshot(page: Page, name: str) -> None:
    """Write docs/<name>.png when PM_WRITE_SCREENSHOTS=1 asks for it."""
    if _WRITE:
        page.screenshot(path=_DOCS / f"{name}.png", animations="disabled")


@pytest.fixture(scope="session")
def patience() -> Iterator[None]:
    """How long an expectation of a page may take to come true."""
    expect.set_options(timeout=_PATIENCE_MILLISECONDS)
    yield
    expect.set_options(timeout=None)
