"""The page in a real browser."""

import re
import signal
from typing import Literal

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, Route, expect

from database import MAX_ID
from tests.app.conftest import ServerProcess, StartServer
from tests.browser import OpenPage, press
from tools.private_database import PrivateDatabase

TEXT_COLORS: dict[Literal["light", "dark"], str] = {
    "light": "rgb(0, 0, 0)",
    "dark": "rgb(255, 255, 255)",
}


def audit(page: Page) -> None:
    """Assert that an accessibility audit finds nothing, in the light and the dark scheme."""
    for scheme, color in TEXT_COLORS.items():
        page.emulate_media(color_scheme=scheme)
        expect(page.locator("body")).to_have_css("color", color)
        results = Axe().run(page)
        assert results.violations_count == 0, results.generate_report()


# What people see and do


def test_audit_finds_nothing_in_light_and_dark(server: ServerProcess, open_page: OpenPage) -> None:
    page = open_page(server.port, "/?after=50")
    audit(page)
    press(page)
    expect(page.locator("#health")).to_have_text(re.compile("^unhealthy since"))
    audit(page)


def test_keyboard_turns_pages_and_presses_the_button(
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


def test_everything_works_without_javascript(server: ServerProcess, open_page: OpenPage) -> None:
    page = open_page(server.port, java_script_enabled=False)
    page.get_by_role("link", name="Next").click()
    table = page.get_by_role("table", name="Accounts from id 51 to id 100")
    expect(table.get_by_role("columnheader")).to_have_text(["Id", "Name", "Email"])
    expect(table.get_by_role("rowheader")).to_have_count(50)
    page.get_by_role("button", name="Make unhealthy").click()
    page.wait_for_url("/")
    expect(page.get_by_text("unhealthy since")).to_be_visible()


def test_hostile_values_are_text_and_fit_320_pixels(
    database: PrivateDatabase, server: ServerProcess, open_page: OpenPage
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
    database.sql("INSERT INTO cct.accounts VALUES (%s, 'last', 'last')", MAX_ID)
    page = open_page(server.port, "/?after=120", viewport={"width": 320, "height": 568})
    assert page.get_by_role("rowheader").all_text_contents() == [*values, "last"]
    assert page.locator("td:last-child").all_text_contents() == [*values, "last"]
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 320
    last_id = page.get_by_role("cell", name=str(MAX_ID))
    assert last_id.evaluate("cell => cell.scrollHeight") < 48, "the id is broken into lines"


def test_lost_database_has_its_own_page(
    database: PrivateDatabase, server: ServerProcess, open_page: OpenPage
) -> None:
    with database.hanging():
        page = open_page(server.port)
        expect(page.get_by_role("heading")).to_have_text("No accounts")
        sentence = page.get_by_text("The database does not answer. Try again in a few seconds.")
        expect(sentence).to_have_css("color", TEXT_COLORS["light"])  # not dimmed
        expect(page.get_by_role("table")).to_be_hidden()
        audit(page)
    page.reload()
    expect(page.get_by_role("heading")).to_have_text("Accounts")


# The button


def test_button_without_a_server_says_no_answer(
    server: ServerProcess, start_server: StartServer, open_page: OpenPage
) -> None:
    page = open_page(server.port)
    server.kill()
    page.get_by_role("button").click()
    expect(page.get_by_role("listitem")).to_have_text(["no answer"])
    page.get_by_role("button").click()
    expect(page.get_by_role("listitem")).to_have_text(["no answer"])
    audit(page)

    start_server(PORT=str(server.port))
    page.reload()  # which repeats no POST
    expect(page.locator("#health")).to_have_text("healthy")
    press(page)


def test_button_of_a_hung_server_says_no_answer(server: ServerProcess, open_page: OpenPage) -> None:
    page = open_page(server.port)
    server.process.send_signal(signal.SIGSTOP)
    page.get_by_role("button").click()
    expect(page.get_by_role("button")).to_be_disabled()
    expect(page.get_by_text("no answer")).to_be_visible()
    expect(page.get_by_role("button")).to_be_enabled()


def test_button_behind_a_proxy_that_rewrites_host_says_why(
    server: ServerProcess, open_page: OpenPage
) -> None:
    def rewrite(route: Route) -> None:
        headers = {"host": "app", "origin": route.request.headers["origin"]}
        route.fulfill(response=route.fetch(headers=headers))

    page = open_page(server.port)
    page.route("/make-unhealthy", rewrite)
    page.get_by_role("button").click()
    sentence = "/make-unhealthy takes no requests from other sites. A proxy must forward Host."
    expect(page.get_by_role("listitem")).to_contain_text([sentence])
    expect(page.get_by_role("button")).to_be_enabled()
    assert server.get("/health") == (200, "healthy\n")


def test_button_that_was_turned_off_says_so(
    server: ServerProcess, start_server: StartServer, open_page: OpenPage
) -> None:
    page = open_page(server.port)
    server.kill()
    start_server(PORT=str(server.port), MAKE_UNHEALTHY="off")
    page.get_by_role("button").click()
    expect(page.get_by_role("listitem")).to_have_text(
        ["There is nothing here. Try /, /health or /ready."]
    )
    page.reload()
    expect(page.get_by_role("button")).to_have_count(0)
