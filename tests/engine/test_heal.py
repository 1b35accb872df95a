"""The heal of app: what the page, the engine and the healer show."""

import os
import re
import time
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser import OpenPage, steps
from tests.conftest import Report
from tests.stack import Stack
from tools.waiting import until

HEALED = re.compile(r"^healthy again after \d+\.\d s$")
START_PROBES = 5  # in the Dockerfile: a start period of 5 s with a probe each second
RETRIES = 3


# Each start of a container changes the network of the machine. Chromium may then end a request with
# ERR_NETWORK_CHANGED, and the page says "no answer".
@pytest.mark.timed
def test_whole_heal_is_shown(
    stack: Stack, open_page: OpenPage, tmp_path: Path, report: Report
) -> None:
    """`make screenshots` keeps the pictures: SCREENSHOTS names their folder."""
    pictures = Path(os.environ.get("SCREENSHOTS") or tmp_path)
    page = open_page(stack.port, viewport={"width": 800, "height": 640})
    before = page.locator("#started").inner_text()
    page.screenshot(path=pictures / "page.png")

    page.get_by_role("button", name="Make unhealthy").click()
    expect(page.get_by_text("probe 1 failed")).to_be_visible()
    page.reload()
    expect(page.get_by_text("probe 2 failed")).to_be_visible()
    page.screenshot(path=pictures / "unhealthy.png")
    expect(page.get_by_text(HEALED)).to_be_visible(timeout=60_000)
    page.screenshot(path=pictures / "healed.png")

    report("\n".join(page.get_by_role("listitem").all_text_contents()))
    told = steps(page)
    assert told[:3] == ["made unhealthy", "probe 1 failed", "probe 2 failed"]
    assert set(told[3:-1]) <= {"probe 3 failed", "restarting (no answer)", "no answer"}
    expect(page.locator("#started")).not_to_have_text(before)
    expect(page.get_by_role("button")).to_be_enabled()
    stack.wait_until_healthy()


def count_probes(stack: Stack, output: str) -> int:
    """Return how many of the latest probes of app had this output."""
    probes = stack.inspect("app")["State"]["Health"]["Log"]
    return [probe["Output"] for probe in probes].count(output)


def test_flag_is_healed(stack: Stack, report: Report) -> None:
    before = stack.page()
    heals = stack.count_heals()
    started = stack.started()
    began = time.monotonic()
    _, reason = stack.get("/make-unhealthy")
    until(lambda: count_probes(stack, reason) >= RETRIES, "unhealthy")
    stack.wait_for_heal(started)
    report(f"healthy again after {time.monotonic() - began:.1f} s")

    after = stack.page()
    assert after["started"] != before["started"]
    assert after | {"started": ""} == before | {"started": ""}
    assert stack.count_heals() > heals


def test_flag_right_after_the_start_is_healed(stack: Stack) -> None:
    """Failed probes in the start period do not count, but those after it do."""
    stack.compose("up", "-d", "--force-recreate", "--no-deps", "app")
    until(lambda: stack.get("/make-unhealthy")[0] == 200, "unhealthy")
    stack.wait_for_heal(stack.started())
    failed = stack.logs("app").count("'/health' 503")
    assert RETRIES <= failed < 2 * (START_PROBES + RETRIES)
