"""The page beside the real stack: it shows within 2 s what happens, whoever does it.

Each start of a container changes the network of the machine. Chromium then ends requests. The page
repeats one lost request, but a busy machine may change its network more often. So these tests run
alone.
"""

import os
import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser import OpenPage, bring_back, expect_last_step, expect_state, hide, steps
from tests.conftest import Report
from tests.stack import Stack

pytestmark = pytest.mark.timed

SOON = 2  # seconds
HEALED = r"healthy again after \d+\.\d s"
LONGEST_HEAL = 60_000  # milliseconds, on a busy machine


def expect_healed(page: Page) -> None:
    """Wait for the end of a heal."""
    expect(page.get_by_role("log")).to_contain_text("healthy again", timeout=LONGEST_HEAL)
    expect_state(page, "healthy")


def test_whole_heal_is_shown(
    stack: Stack, open_page: OpenPage, tmp_path: Path, report: Report
) -> None:
    """The flag is set by curl. Four tabs are open: two are visible, one is hidden, one has no
    JavaScript. `make screenshots` keeps the pictures: SCREENSHOTS names their folder.
    """
    pictures = Path(os.environ.get("SCREENSHOTS") or tmp_path)
    page = open_page(stack.port, viewport={"width": 960, "height": 640})
    second = open_page(stack.port)
    hidden = open_page(stack.port)
    plain = open_page(stack.port, java_script_enabled=False)
    before = page.locator("#started").inner_text()
    expect(page.locator("#probe")).to_have_text(re.compile(r"^[0-5] s ago$"))
    page.screenshot(path=pictures / "page.png")
    hide(hidden)

    stack.get("/make-unhealthy")
    expect_state(page, "unhealthy", SOON)
    expect_state(second, "unhealthy", SOON)
    plain.reload()
    expect_state(plain, "unhealthy")
    expect(page.get_by_role("log")).to_contain_text("probe 2 failed")
    page.screenshot(path=pictures / "unhealthy.png")
    expect_healed(page)
    page.screenshot(path=pictures / "healed.png")
    report("\n".join(page.get_by_role("log").inner_text().splitlines()))

    told = steps(page)
    if "probe 3 failed" in told:  # the healer may act a moment after it, before the tab asks again
        told.remove("probe 3 failed")
    assert told[:3] == ["made unhealthy", "probe 1 failed", "probe 2 failed"]
    assert told[3:-1] == ["the healer restarts the server"]
    assert re.fullmatch(HEALED, told[-1])
    expect(page.locator("#started")).not_to_have_text(before)
    expect(page.get_by_role("button")).to_be_enabled()
    expect_healed(second)
    bring_back(hidden)
    expect(hidden.locator("#started")).not_to_have_text(before, timeout=SOON * 1000)
    plain = plain.context.new_page()
    plain.goto("/")
    expect_state(plain, "healthy")
    stack.wait_until_healthy()


def test_database_that_goes_and_comes_back_is_shown(stack: Stack, open_page: OpenPage) -> None:
    page = open_page(stack.port)
    database = page.locator("#database")
    started = stack.started()
    stack.compose("stop", "db")
    # A read that begins while the container ends hangs until DB_TIMEOUT.
    expect(database).to_have_text("error", timeout=2 * SOON * 1000)
    sentence = "The database does not answer. The server is healthy, so nothing restarts it."
    expect(page.get_by_text(sentence)).to_be_visible()
    second = open_page(stack.port)
    expect(second.get_by_role("table")).to_be_hidden()
    stack.compose("up", "-d", "--wait", "db")
    expect(database).to_have_text("answers", timeout=SOON * 1000)
    expect(second.get_by_role("rowheader")).to_have_count(50, timeout=SOON * 1000)
    expect_state(page, "healthy")
    assert stack.started() == started


def test_killed_server_is_shown(stack: Stack, open_page: OpenPage) -> None:
    page = open_page(stack.port)
    expect_state(page, "healthy")
    before = page.locator("#started").inner_text()
    stack.in_server("kill -KILL $pid")  # the engine restarts it, often within a second
    expect(page.locator("#started")).not_to_have_text(before)
    stack.compose("kill", "app")  # the engine does not
    expect_state(page, "no answer", SOON)
    stack.compose("start", "app")
    expect_last_step(page, HEALED)
    expect_state(page, "healthy")
    stack.wait_until_healthy()


def test_stopped_healer_leaves_the_server_unhealthy(stack: Stack, open_page: OpenPage) -> None:
    stack.compose("stop", "-t", "1", "autoheal")
    try:
        page = open_page(stack.port)
        page.get_by_role("button").click()
        sentence = "nothing has restarted it yet"
        expect(page.get_by_role("log")).to_contain_text(sentence, timeout=LONGEST_HEAL)
        expect_state(page, "unhealthy")
    finally:
        stack.compose("start", "autoheal")
    expect_healed(page)
    stack.wait_until_healthy()
