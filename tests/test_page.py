"""The page in a real browser: what people see, hear and do, and the whole heal against the real stack."""

import asyncio
import os
import re
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Page, async_playwright, expect

from tests.conftest import Report, ServerProcess, StartServer
from tests.database import DatabaseServer
from tests.docker import require_engine, running_stack

ARGUMENTS = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
OpenPage = Callable[..., Awaitable[Page]]


@pytest.fixture
async def open_page() -> AsyncIterator[OpenPage]:
    """Give a function that opens a page of a port in the system's Chromium.

    Whatever its console then says is an error: a violation of the page's Content-Security-Policy, for one.
    """
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not program:
        refuse = pytest.fail if os.environ.get("REQUIRE_BROWSER") == "1" else pytest.skip
        refuse("needs Chromium")
    arguments = [*ARGUMENTS, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    said: list[str] = []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=program, args=arguments)

        async def open_path(port: int, path: str = "/", **options: Any) -> Page:
            page = await browser.new_page(base_url=f"http://127.0.0.1:{port}", **options)
            page.on("console", lambda message: said.append(message.text))
            page.on("pageerror", lambda error: said.append(str(error)))
            await page.goto(path)
            return page

        yield open_path
        await browser.close()
    assert [text for text in said if "Failed to load resource" not in text] == []  # an honest 503, or no answer


async def audit(page: Page) -> None:
    """Assert that an accessibility audit finds nothing."""
    results = await Axe().run(page)
    assert results.violations_count == 0, results.generate_report()


@pytest.mark.parametrize(("scheme", "color"), [("light", "rgb(0, 0, 0)"), ("dark", "rgb(255, 255, 255)")])
async def test_audit_finds_nothing_in_a_light_and_a_dark_page(
    server: ServerProcess, open_page: OpenPage, scheme: str, color: str
) -> None:
    page = await open_page(server.port, color_scheme=scheme)
    await expect(page.locator("body")).to_have_css("color", color)
    await expect(page.locator("html")).not_to_have_css("background-color", color)
    await audit(page)
    await page.goto("/?after=50")
    await audit(page)
    await page.get_by_role("button").click()
    await expect(page.get_by_text("flag lowered")).to_be_visible()
    await expect(page.locator("dd").nth(2)).to_have_text(re.compile("^unhealthy since"))
    await audit(page)


async def test_keyboard_alone_leads_through_the_pages_and_lowers_the_flag(
    server: ServerProcess, open_page: OpenPage
) -> None:
    page = await open_page(server.port, "/?after=50")
    for name, after in (("Next", 100), ("Previous", 50), ("Previous", 0)):
        for _ in range(4):
            await page.keyboard.press("Tab")
            if await page.evaluate("document.activeElement.textContent") == name:
                break
        await page.keyboard.press("Enter")
        await page.wait_for_url(f"/?after={after}")
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("button", name="Make unhealthy")).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("listitem")).to_have_text([re.compile("flag lowered")])


async def test_works_without_javascript(server: ServerProcess, open_page: OpenPage) -> None:
    page = await open_page(server.port, java_script_enabled=False)
    await page.get_by_role("link", name="Next").click()
    table = page.get_by_role("table", name="50 accounts from id 51")
    await expect(table.get_by_role("columnheader")).to_have_text(["Id", "Name", "Email"])
    await expect(table.get_by_role("rowheader")).to_have_count(50)
    await page.get_by_role("button", name="Make unhealthy").click()
    await page.wait_for_url("/")
    await expect(page.get_by_text("unhealthy since")).to_be_visible()


async def test_hostile_values_are_text_and_fit_320_pixels(
    database: DatabaseServer, server: ServerProcess, open_page: OpenPage
) -> None:
    values = ["<img src=x onerror=alert(1)>", "<b>x</b></td>", "\"'&amp;", "\u202egnp.exe", "👩‍👩‍👧", "x" * 254]
    for value in values:
        database.sql("INSERT INTO cct.accounts (name, email) VALUES (%s, %s)", value, value)
    page = await open_page(server.port, "/?after=120", viewport={"width": 320, "height": 568})
    assert await page.get_by_role("rowheader").all_text_contents() == values
    assert await page.locator("td:last-child").all_text_contents() == values
    assert await page.evaluate("document.scrollingElement.scrollWidth") <= 320


async def test_lost_database_has_a_page_of_its_own(
    database: DatabaseServer, server: ServerProcess, open_page: OpenPage
) -> None:
    database.stop()
    try:
        page = await open_page(server.port)
        await expect(page.get_by_role("heading")).to_have_text("No accounts")
        await expect(page.get_by_text("The database does not answer. Try again in a few seconds.")).to_be_visible()
        await audit(page)
    finally:
        database.start()
    await page.reload()
    await expect(page.get_by_role("heading")).to_have_text("Accounts")


async def steps(page: Page) -> list[str]:
    """Return the steps of the heal that the page tells, without their times."""
    return [re.sub(r"^\d+\.\d s: ", "", text) for text in await page.get_by_role("listitem").all_text_contents()]


def probe(server: ServerProcess) -> None:
    assert server.get("/health", user_agent="cct-probe")[0] == 503


async def test_lost_network_and_a_reload_are_survived_and_a_hidden_tab_rests(
    server: ServerProcess, open_page: OpenPage
) -> None:
    page = await open_page(server.port)
    await page.get_by_role("button").click()
    await asyncio.to_thread(probe, server)
    await expect(page.get_by_text("probe 1 failed")).to_be_visible()
    await page.context.set_offline(True)
    await expect(page.get_by_text("no answer")).to_be_visible()
    await page.context.set_offline(False)
    await asyncio.to_thread(probe, server)
    await expect(page.get_by_text("probe 2 failed")).to_be_visible()
    told = await page.get_by_role("listitem").all_text_contents()
    await page.reload()
    assert await page.get_by_role("listitem").all_text_contents() == told
    await asyncio.to_thread(probe, server)
    await expect(page.get_by_text("probe 3 failed")).to_be_visible()
    assert await steps(page) == ["flag lowered", "probe 1 failed", "no answer", "probe 2 failed", "probe 3 failed"]

    await page.evaluate("Object.defineProperty(document, 'hidden', {value: true, configurable: true})")
    await page.wait_for_timeout(600)  # the request under way ends
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    await page.wait_for_timeout(1000)
    assert asked == []
    await page.evaluate("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")
    await page.wait_for_event("request")


async def test_button_works_again_after_the_heal_and_a_flag_that_was_lowered_elsewhere_is_found(
    server: ServerProcess, start_server: StartServer, open_page: OpenPage
) -> None:
    page = await open_page(server.port)
    button = page.get_by_role("button")
    await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")  # as in a tab that was hidden
    await expect(button).to_be_enabled()
    await button.click()
    await expect(button).to_be_disabled()
    server.stop()
    await asyncio.to_thread(start_server, PORT=str(server.port))
    await expect(page.get_by_text("healthy again, healed in")).to_be_visible()
    await expect(button).to_be_enabled()
    await asyncio.to_thread(server.get, "/make-unhealthy")
    await page.reload()
    assert await steps(page) == ["found unhealthy"]
    await expect(button).to_be_disabled()


async def test_whole_heal_of_the_real_stack(open_page: OpenPage, tmp_path: Path, report: Report) -> None:
    """With SCREENSHOTS it leaves its pictures in that folder."""
    require_engine()
    pictures = Path(os.environ.get("SCREENSHOTS", tmp_path))
    with running_stack(tmp_path / "cct") as stack:
        page = await open_page(stack.port, viewport={"width": 800, "height": 640})
        container, started = page.locator("dd").nth(0), page.locator("dd").nth(1)
        before = (await started.text_content()) or ""
        assert await container.text_content() == stack.inspect("app")["Id"][:12]
        await page.screenshot(path=pictures / "page.png")
        await page.get_by_role("button", name="Make unhealthy").click()
        await expect(page.get_by_text("probe 2 failed")).to_be_visible(timeout=30_000)
        await page.screenshot(path=pictures / "unhealthy.png")
        await page.reload()
        await expect(page.get_by_text("healthy again, healed in")).to_be_visible(timeout=60_000)
        await page.screenshot(path=pictures / "healed.png")
        await expect(started).not_to_have_text(before)
        await expect(page.get_by_role("button")).to_be_enabled()
        told = await steps(page)
        report("\n".join(await page.get_by_role("listitem").all_text_contents()))
        assert told[:3] == ["flag lowered", "probe 1 failed", "probe 2 failed"]
        assert re.fullmatch(r"healthy again, healed in \d+\.\d s", told[-1])
        assert set(told[3:-1]) <= {"probe 3 failed", "restarting (no answer)", "no answer"}
        await page.reload()
        assert await steps(page) == []
