"""What an operator sees in the Dagster UI, from the waiting jobs to the page of a run that was started."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from pm_dagster.orchestration import names
from pm_dagster_tests.browser.conftest import keep_screenshot, new_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

    from pm_dagster_tests.browser.conftest import Site

pytestmark = pytest.mark.browser

_DISPATCH_MILLISECONDS = 60_000
_NUMBERS = {"new/accepted": 5, "new/quarantined": 1, "repair/accepted": 4, "read": 10, "scheduled": 9}


@pytest.fixture(scope="module")
def dispatched(site: Site, browser: Browser, patience: None) -> Site:  # noqa: ARG001 it must hold
    """The site after somebody clicked "Materialize all" once, which starts no cluster, and saw it succeed."""
    page = new_page(browser)
    page.goto(f"{site.url}/asset-groups")
    page.get_by_role("button", name="Materialize all (2)").click()
    expect(_node(page, names.DISPATCHED_JOBS)).to_contain_text("Materialized", timeout=_DISPATCH_MILLISECONDS)
    page.context.close()
    return site


def _node(page: Page, asset: str) -> Locator:
    """The box of an asset in the graph."""
    return page.locator("svg foreignObject").filter(has_text=re.compile(rf"^\s*{asset}"))


def _open_rows(page: Page, site: Site) -> Locator:
    """The table of the rows, opened on the asset's page."""
    page.goto(f"{site.url}/assets/{names.DISPATCHED_JOBS}?view=events")
    page.get_by_text("[Show Markdown]").click()
    return page.get_by_role("dialog").get_by_role("table")


def test_the_lineage_leads_from_the_view_to_the_dispatched_jobs(dispatched: Site, page: Page) -> None:
    page.goto(f"{dispatched.url}/asset-groups")
    for asset, shown in (
        (names.VIEW, "View"),
        (names.WAITING_JOBS, "Materialized"),
        (names.DISPATCHED_JOBS, "Materialized"),
        (names.ON_CLUSTER, "Latest event"),
    ):
        expect(_node(page, asset)).to_contain_text(shown)
    keep_screenshot(page, "lineage")


def test_the_rows_are_scheduled_and_the_bad_one_failed(dispatched: Site) -> None:
    statuses = dispatched.shell.sql("SELECT wkf_job_id = 1001, run_sttus_name, count(*) FROM mm_run_plc GROUP BY 1, 2")
    assert sorted(statuses) == [(False, "FAILED", 1), (True, "SCHEDULED", 9)]
    assert dispatched.shell.runs_per_row() == [1] * 5


def test_the_asset_shows_what_the_dispatch_did(dispatched: Site, page: Page) -> None:
    page.goto(f"{dispatched.url}/assets/{names.DISPATCHED_JOBS}?view=events")
    for name, number in _NUMBERS.items():
        row = page.get_by_role("row").filter(has=page.get_by_text(name, exact=True))
        expect(row).to_contain_text(re.compile(rf"{name}\s*{number}\s*$"))


def test_the_numbers_are_plotted(dispatched: Site, page: Page) -> None:
    page.goto(f"{dispatched.url}/assets/{names.DISPATCHED_JOBS}")
    page.get_by_role("button", name="Plots").click()
    expect(page.locator("canvas").first).to_be_visible()
    expect(page.get_by_text("new/accepted").first).to_be_visible()


def test_the_table_has_a_line_for_each_row_the_bad_one_first(dispatched: Site, page: Page) -> None:
    table = _open_rows(page, dispatched)
    expect(table.locator("tbody tr")).to_have_count(10)
    expect(table.locator("tbody tr").first).to_contain_text("quarantined")
    expect(table.get_by_role("link")).to_have_count(9)
    # Behind the table: the counts, rather than where this machine keeps its files.
    page.get_by_text("new/accepted", exact=True).scroll_into_view_if_needed()
    keep_screenshot(page, "dispatch")


def test_a_link_in_the_table_leads_to_the_page_of_the_run(dispatched: Site, page: Page) -> None:
    link = _open_rows(page, dispatched).get_by_role("link").first
    run_id = link.inner_text()
    page.goto(link.get_attribute("href") or "")
    assert page.url.startswith(dispatched.shell.workspace.host)
    expect(page.locator("body")).to_contain_text(run_id)
    expect(page.locator("body")).to_contain_text("ingest_files")


def test_the_check_names_the_row_that_needs_somebody(dispatched: Site, page: Page) -> None:
    page.goto(f"{dispatched.url}/assets/{names.DISPATCHED_JOBS}?view=checks")
    expect(page.get_by_text("Rows refused by this dispatch: 1.").first).to_be_visible()
