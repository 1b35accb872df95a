"""The page in a real browser."""

import re
import signal
from typing import Literal

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import FloatRect, Page, Route, ViewportSize, expect

from server import MAX_ID
from tests.app.conftest import ServerProcess
from tests.browser import OpenPage, expect_state, press
from tools.private_database import PrivateDatabase

LOST = "The database does not answer."
TEXT_COLORS: dict[Literal["light", "dark"], str] = {
    "light": "rgb(0, 0, 0)",
    "dark": "rgb(255, 255, 255)",
}
PHONE: ViewportSize = {"width": 390, "height": 844}
SMALL_PHONE: ViewportSize = {"width": 320, "height": 568}


def audit(page: Page) -> FloatRect | None:
    """Assert that an accessibility audit finds nothing, in the light and the dark scheme.

    Return the place of the table.
    """
    for scheme, color in TEXT_COLORS.items():
        page.emulate_media(color_scheme=scheme)
        expect(page.locator("body")).to_have_css("color", color)
        results = Axe().run(page)
        assert results.violations_count == 0, results.generate_report()
    return page.get_by_role("table").bounding_box()


# What people see and do


def test_every_state_passes_an_audit_and_moves_nothing(
    database: PrivateDatabase, server: ServerProcess, open_page: OpenPage
) -> None:
    page = open_page(server.port, viewport=PHONE)
    reason = page.locator("#reason")
    expect_state(page, "healthy")
    place = audit(page)

    with database.hanging():
        note = page.get_by_text(f"{LOST} The server is healthy, so nothing restarts it.")
        expect(note).to_be_visible()
        expect(page.locator("#database")).to_have_text("error")
        assert audit(page) == place
    expect(page.locator("#database")).to_have_text("answers")

    press(page)
    expect_state(page, "unhealthy")
    expect(reason).to_have_text(re.compile("^unhealthy since .*: POST /make-unhealthy from"))
    assert audit(page) == place

    for _ in range(3):
        server.probe()
    expect(page.get_by_role("log")).to_contain_text("probe 3 failed")
    server.kill()
    expect_state(page, "restarting")
    expect(reason).to_have_text("The server does not answer.")
    assert audit(page) == place

    server.restart()
    expect_state(page, "healthy")
    expect(reason).to_be_empty()
    assert audit(page) == place

    server.kill()
    expect_state(page, "no answer")
    assert audit(page) == place


def test_keyboard_turns_pages_and_keeps_its_place(
    server: ServerProcess, open_page: OpenPage
) -> None:
    page = open_page(server.port, "/?after=50")
    for tabs, address in ((3, "/?after=100"), (2, "/")):  # the button, First, Next
        for _ in range(tabs):
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.wait_for_url(address)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect_state(page, "unhealthy")
    button = page.get_by_role("button", name="Make unhealthy")
    expect(button).to_be_disabled()
    expect(button).to_be_focused()
    page.keyboard.press("Enter")  # does nothing
    server.restart()
    expect_state(page, "healthy")
    expect(button).to_be_enabled()
    expect(button).to_be_focused()


def test_everything_but_the_steps_works_without_javascript(
    database: PrivateDatabase, server: ServerProcess, open_page: OpenPage
) -> None:
    page = open_page(server.port, java_script_enabled=False)
    page.get_by_role("link", name="Next").click()
    table = page.get_by_role("table", name="Accounts from id 51 to id 100")
    expect(table.get_by_role("columnheader")).to_have_text(["Id", "Name", "Email"])
    expect(table.get_by_role("rowheader")).to_have_count(50)
    with database.hanging():
        page.reload()
        expect(page.locator("#note")).to_contain_text(LOST)
        expect(page.get_by_role("table")).to_be_hidden()
    expect(table).to_be_visible()  # the page asks again by itself
    page.get_by_role("button", name="Make unhealthy").click()
    page.wait_for_url("/")
    expect_state(page, "unhealthy")
    expect(page.get_by_text("unhealthy since")).to_be_visible()
    with page.expect_navigation(url="/"):
        server.probe()
    expect(page.locator("#probe")).to_contain_text("s ago")


# On a phone


def test_rows_are_one_line_on_a_phone(server: ServerProcess, open_page: OpenPage) -> None:
    page = open_page(server.port, viewport=PHONE)
    heights = page.evaluate("[...document.querySelectorAll('tr')].map(row => row.offsetHeight)")
    assert len(set(heights)) <= 2, heights  # the head has no line above
    page.set_viewport_size(SMALL_PHONE)
    lines = "cell => { const range = new Range(); range.selectNodeContents(cell);"
    lines += "return range.getClientRects().length }"
    for address in page.locator("td:last-child").all():
        assert address.evaluate(lines) == 1


def test_hostile_values_are_text_and_fit_320_pixels(
    database: PrivateDatabase, server: ServerProcess, open_page: OpenPage
) -> None:
    values = ["<img src=x onerror=alert(1)>", "<b>x</b></td>", "\"'&amp;", "👩‍👩‍👧", "x" * 254]
    for value in values:
        database.sql("INSERT INTO cct.accounts (name, email) VALUES (%s, %s)", value, value)
    database.sql("INSERT INTO cct.accounts VALUES (%s, 'last', 'last')", MAX_ID)
    page = open_page(server.port, "/?after=120", viewport=SMALL_PHONE)
    assert page.get_by_role("rowheader").all_text_contents() == [*values, "last"]
    assert page.locator("td:last-child").all_text_contents() == [*values, "last"]
    page.goto("/?after=125")
    last_id = page.get_by_role("cell", name=str(MAX_ID))
    assert last_id.evaluate("cell => cell.scrollHeight") < 48, "the id is broken into lines"
    database.sql("DELETE FROM cct.accounts WHERE id = %s", MAX_ID)
    page.goto("/?after=120")
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 320


# The button


def test_button_of_a_hung_server_says_no_answer(server: ServerProcess, open_page: OpenPage) -> None:
    page = open_page(server.port)
    server.process.send_signal(signal.SIGSTOP)
    page.get_by_role("button").click()
    expect(page.get_by_role("button")).to_be_disabled()
    expect_state(page, "no answer")
    server.process.send_signal(signal.SIGCONT)
    expect(page.get_by_role("button")).to_be_disabled()
    expect_state(page, "unhealthy")  # the request waited


def test_page_works_behind_a_path_of_a_proxy(server: ServerProcess, open_page: OpenPage) -> None:
    def forward(route: Route) -> None:
        url = route.request.url
        if "/cct/" in url:
            route.fulfill(response=route.fetch(url=url.replace("/cct/", "/"), max_redirects=0))
        else:
            route.abort()  # belongs to another program

    page = open_page(server.port, "/health")
    page.route("**/*", forward)
    page.goto("/cct/")
    expect(page.locator("header")).to_have_css("border-left-width", "8px")  # has its style
    press(page)
    expect_state(page, "unhealthy")
    page.get_by_role("link", name="Next").click()
    page.wait_for_url("/cct/?after=50")
    page.goto("/cct/nothing/here")
    page.get_by_role("link", name="Back").click()
    page.wait_for_url("/cct/")


def test_button_behind_a_proxy_that_rewrites_host_says_why(
    server: ServerProcess, open_page: OpenPage
) -> None:
    def rewrite(route: Route) -> None:
        headers = {"host": "app", "origin": route.request.headers["origin"]}
        answer = route.fetch(headers=headers)
        route.fulfill(status=answer.status, body=answer.text())

    page = open_page(server.port)
    page.route("/make-unhealthy", rewrite)
    page.get_by_role("button").click()
    sentence = "/make-unhealthy takes no requests from other sites. A proxy must forward Host"
    expect(page.get_by_role("log")).to_contain_text(sentence)
    expect(page.get_by_role("button")).to_be_enabled()
    assert server.get("/health") == (200, "healthy\n")
