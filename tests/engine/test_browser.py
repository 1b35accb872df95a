"""The whole heal of the real stack, as a person sees it in a browser."""

import os
import re
from pathlib import Path

from playwright.sync_api import expect

from tests.browser import OpenPage, steps
from tests.conftest import Report
from tests.stack import Stack

DURATION = re.compile(r"^healthy again after \d+\.\d s$")


def test_whole_heal_is_shown(
    stack: Stack, open_page: OpenPage, tmp_path: Path, report: Report
) -> None:
    """`make screenshots` keeps the pictures: SCREENSHOTS names their folder."""
    pictures = Path(os.environ.get("SCREENSHOTS") or tmp_path)
    page = open_page(stack.port, viewport={"width": 800, "height": 640})
    before = page.locator("#started").inner_text()
    page.screenshot(path=pictures / "page.png")

    page.get_by_role("button", name="Make unhealthy").click()
    expect(page.get_by_text("probe 2 failed")).to_be_visible(timeout=30_000)
    page.screenshot(path=pictures / "unhealthy.png")
    page.reload()
    expect(page.get_by_text(DURATION)).to_be_visible(timeout=60_000)
    page.screenshot(path=pictures / "healed.png")

    report("\n".join(page.get_by_role("listitem").all_text_contents()))
    told = steps(page)
    assert told[:3] == ["made unhealthy", "probe 1 failed", "probe 2 failed"]
    assert set(told[3:-1]) <= {"probe 3 failed", "restarting (no answer)", "no answer"}
    expect(page.locator("#started")).not_to_have_text(before)
    expect(page.get_by_role("button")).to_be_enabled()
