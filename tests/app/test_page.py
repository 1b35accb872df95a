"""The page in a real browser: what people see, hear and do, and the whole heal against the real stack."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Error, Page, expect, sync_playwright

from tests.conftest import Report, ServerProcess, StartServer
from tests.database import DatabaseServer
from tests.docker import running_stack

OpenPage = Callable[..., Page]
SCHEMES: dict[Literal["light", "dark"], str] = {
    "light": "rgb(0, 0, 0)",
    "dark": "rgb(255, 255, 255)",
}  # and their text


@pytest.fixture
def open_page() -> Iterator[OpenPage]:
    """Give a function that opens a page of a port in the system's Chromium.

    Whatever its console then says is an error: a violation of the page's Content-Security-Policy, for one.
    """
    program = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if not program:
        refuse = pytest.fail if os.environ.get("REQUIRE_BROWSER") == "1" else pytest.skip
        refuse("needs Chromium")
    said: list[str] = []

    def open_path(port: int, path: str = "/", **options: Any) -> Page:
        page = browser.new_page(base_url=f"http://127.0.0.1:{port}", **options)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(path)
        return page

    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=program) as browser,
    ):
        yield open_path
    assert [
        text for text in said if "Failed to load resource" not in text
    ] == []  # an honest 503, or no answer


def audit(page: Page) -> None:
    """Assert that an accessibility audit finds nothing, in light and in dark."""
    for scheme, color in SCHEMES.items():
        page.emulate_media(color_scheme=scheme)
        expect(page.locator("body")).to_have_css("color", color)
        results = Axe().run(page)
        assert results.violations_count == 0, results.generate_report()


def steps(page: Page) -> list[str]:
    """Return the steps of the heal that the page tells, without their times."""
    return [
        re.sub(r"^\d+\.\d s: ", "", text)
        for text in page.get_by_role("listitem").all_text_contents()
    ]


def test_audit_finds_nothing_in_a_light_and_a_dark_page(
    server: ServerProcess, open_page: OpenPage
) -> None:
    page = open_page(server.port, "/?after=50")
    audit(page)
    page.get_by_role("button").click()
    expect(page.locator("dd").nth(2)).to_have_text(re.compile("^unhealthy since"))
    audit(page)


def test_keyboard_alone_leads_through_the_pages_and_presses_the_button(
    server: ServerProcess, open_page: OpenPage
) -> None:
    page = open_page(server.port, "/?after=50")
    for tabs, after in ((3, 100), (2, 50), (2, 0)):  # the button, Previous, Next
        for _ in range(tabs):
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.wait_for_url(f"/?after={after}")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("listitem")).to_have_text([re.compile("made unhealthy")])


def test_works_without_javascript(server: ServerProcess, open_page: OpenPage) -> None:
    page = open_page(server.port, java_script_enabled=False)
    page.get_by_role("link", name="Next").click()
    table = page.get_by_role("table", name="Accounts from id 51 to id 100")
    expect(table.get_by_role("columnheader")).to_have_text(["Id", "Name", "Email"])
    expect(table.get_by_role("rowheader")).to_have_count(50)
    page.get_by_role("button", name="Make unhealthy").click()
    page.wait_for_url("/")
    expect(page.get_by_text("unhealthy since")).to_be_visible()


def test_hostile_values_are_text_and_fit_320_pixels(
    database: DatabaseServer, server: ServerProcess, open_page: OpenPage
) -> None:
    values = [
        "<img src=x onerror=alert(1)>",
        "<b>x</b></td>",
        "\"'&amp;",
        "\u202egnp.exe",
        "👩‍👩‍👧",
        "x" * 254,
    ]
    for value in values:
        database.sql("INSERT INTO cct.accounts (name, email) VALUES (%s, %s)", value, value)
    page = open_page(server.port, "/?after=120", viewport={"width": 320, "height": 568})
    assert page.get_by_role("rowheader").all_text_contents() == values
    assert page.locator("td:last-child").all_text_contents() == values
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 320


def test_lost_database_has_its_own_page(
    database: DatabaseServer, server: ServerProcess, open_page: OpenPage
) -> None:
    with database.hanging():
        page = open_page(server.port)
        expect(page.get_by_role("heading")).to_have_text("No accounts")
        expect(
            page.get_by_text("The database does not answer. Try again in a few seconds.")
        ).to_be_visible()
        audit(page)
    page.reload()
    expect(page.get_by_role("heading")).to_have_text("Accounts")


def test_lost_network_and_reload_are_survived_and_hidden_tab_rests(
    server: ServerProcess, open_page: OpenPage
) -> None:
    page = open_page(server.port)
    page.get_by_role("button").click()
    expect(page.get_by_text("made unhealthy")).to_be_visible()
    for number in (1, 2, 3):
        server.get("/health", user_agent="cct-probe")
        expect(page.get_by_text(f"probe {number} failed")).to_be_visible()
        told = page.get_by_role("listitem").all_text_contents()
        page.reload()
        assert page.get_by_role("listitem").all_text_contents() == told
        page.context.set_offline(True)
        expect(page.get_by_role("listitem").last).to_contain_text("no answer")
        page.context.set_offline(False)
    story = "made unhealthy, probe 1 failed, no answer, probe 2 failed, no answer, probe 3 failed, restarting (no answer)"
    assert steps(page) == story.split(", ")

    page.evaluate("Object.defineProperty(document, 'hidden', {value: true, configurable: true})")
    page.wait_for_load_state("networkidle")  # the request under way ends
    with pytest.raises(Error, match="Timeout"):
        page.wait_for_event("request", timeout=1000)
    page.evaluate("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")
    page.wait_for_event("request")


def test_button_works_again_after_the_heal_and_a_flag_that_was_set_elsewhere_is_found(
    server: ServerProcess, start_server: StartServer, open_page: OpenPage
) -> None:
    page = open_page(server.port)
    button = page.get_by_role("button")
    page.evaluate(
        "document.dispatchEvent(new Event('visibilitychange'))"
    )  # as in a tab that was hidden
    expect(button).to_be_enabled()
    button.click()
    expect(button).to_be_disabled()
    server.stop()
    start_server(PORT=str(server.port))
    expect(page.get_by_text("healthy again, healed in")).to_be_visible()
    expect(button).to_be_enabled()
    server.get("/make-unhealthy")
    page.reload()
    assert steps(page) == ["found unhealthy"]


def test_button_without_a_server_leads_to_the_browsers_own_error(
    server: ServerProcess, open_page: OpenPage
) -> None:
    page = open_page(server.port)
    server.stop()
    page.get_by_role("button").click()
    page.wait_for_url("chrome-error://**")


def test_whole_heal_of_the_real_stack(open_page: OpenPage, tmp_path: Path, report: Report) -> None:
    """With SCREENSHOTS it leaves its pictures in that folder."""
    pictures = Path(os.environ.get("SCREENSHOTS", tmp_path))
    with running_stack(tmp_path / "cct") as stack:
        page = open_page(stack.port, viewport={"width": 800, "height": 640})
        started = page.locator("dd").nth(1)
        before = started.inner_text()
        page.screenshot(path=pictures / "page.png")
        page.get_by_role("button", name="Make unhealthy").click()
        expect(page.get_by_text("probe 2 failed")).to_be_visible(timeout=30_000)
        page.screenshot(path=pictures / "unhealthy.png")
        page.reload()
        expect(page.get_by_text(re.compile(r"healthy again, healed in \d+\.\d s$"))).to_be_visible(
            timeout=60_000
        )
        page.screenshot(path=pictures / "healed.png")
        expect(started).not_to_have_text(before)
        told = steps(page)
        report("\n".join(page.get_by_role("listitem").all_text_contents()))
        assert told[:3] == ["made unhealthy", "probe 1 failed", "probe 2 failed"]
        assert set(told[3:-1]) <= {"probe 3 failed", "restarting (no answer)", "no answer"}
