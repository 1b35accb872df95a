"""The steps of a heal, in a real browser."""

import json
import re
import sys
from datetime import datetime
from pathlib import Path

import pytest
from playwright.sync_api import Error, Page, expect

from tests.app.conftest import ServerProcess, StartServer
from tests.browser import OpenPage, press, steps
from tools.private_database import PrivateDatabase

OTHER_SHAPES = [  # of what the session storage may hold
    "",
    "{",
    "null",
    "1",
    '"text"',
    "[]",
    "{}",
    '{"began": 1, "container": "a", "probes": 0}',
    '{"began": 1, "container": "a", "probes": 0, "steps": "text"}',
    '{"began": 1, "container": "a", "probes": 0, "steps": [null]}',
    '{"began": 1, "container": "a", "probes": 0, "steps": [{"text": "made unhealthy"}]}',
    '{"began": 1, "container": "a", "probes": "0", "steps": []}',
    '{"began": "1", "container": "a", "probes": 0, "steps": []}',
    '{"began": 1, "container": 1, "probes": 0, "steps": []}',
]


def hide(page: Page) -> None:
    """Hide the tab, and assert that it sends no request for a second.

    Playwright keeps every tab visible, so this function sets `document.hidden` itself.
    """
    page.evaluate("Object.defineProperty(document, 'hidden', {value: true, configurable: true})")
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    with pytest.raises(Error, match="Timeout"):
        page.wait_for_event("request", timeout=1000)


def bring_back(page: Page) -> None:
    """Show the tab again."""
    page.evaluate("delete document.hidden")
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")


def test_button_works_again_after_the_heal(
    server: ServerProcess, start_server: StartServer, open_page: OpenPage
) -> None:
    page = open_page(server.port)
    button = page.get_by_role("button")
    bring_back(page)  # nothing to tell
    expect(button).to_be_enabled()
    press(page)
    expect(button).to_be_disabled()
    server.kill()
    start_server(PORT=str(server.port))
    expect(page.get_by_text(re.compile(r"^healthy again after \d+\.\d s$"))).to_be_visible()
    expect(page.locator("#health")).to_have_text("healthy")
    press(page)
    expect(page.get_by_role("listitem")).to_have_text([re.compile("made unhealthy")])


def test_flag_set_elsewhere_is_shown_when_the_page_opens(
    server: ServerProcess, open_page: OpenPage
) -> None:
    server.get("/make-unhealthy")
    page = open_page(server.port)
    assert steps(page) == ["found unhealthy"]


def test_heal_without_a_button_is_shown(
    server: ServerProcess, start_server: StartServer, open_page: OpenPage
) -> None:
    """The button is pressed. Then the server starts again without a button."""
    page = open_page(server.port)
    press(page)
    page.goto("about:blank")  # else the page may see the end of the heal before it is loaded again
    server.kill()
    start_server(PORT=str(server.port), MAKE_UNHEALTHY="off")
    page.goto("/")
    expect(page.get_by_role("button")).to_have_count(0)
    expect(page.get_by_text("healthy again, running since")).to_be_visible()


def test_steps_survive_reloads_and_a_lost_network(
    server: ServerProcess, open_page: OpenPage
) -> None:
    page = open_page(server.port)
    press(page)
    for number in (1, 2, 3):
        server.get("/health", user_agent="cct-probe")
        expect(page.get_by_text(f"probe {number} failed")).to_be_visible()
        told = page.get_by_role("listitem").all_text_contents()
        page.reload()
        assert page.get_by_role("listitem").all_text_contents() == told
        page.context.set_offline(True)
        expect(page.get_by_role("listitem").last).to_contain_text("no answer")
        for _ in range(2):
            page.wait_for_event("requestfailed")  # which is no new step
        page.context.set_offline(False)
    assert steps(page) == [
        "made unhealthy",
        "probe 1 failed",
        "no answer",
        "probe 2 failed",
        "no answer",
        "probe 3 failed",
        "restarting (no answer)",
    ]


def test_lost_database_is_a_step(
    database: PrivateDatabase, server: ServerProcess, open_page: OpenPage
) -> None:
    page = open_page(server.port)
    press(page)
    with database.hanging():
        expect(page.get_by_role("listitem").last).to_contain_text("The database does not answer.")


def test_other_container_that_answers_is_named(
    server: ServerProcess, start_server: StartServer, open_page: OpenPage
) -> None:
    """After the button, another healthy server answers, as behind a balancer."""
    page = open_page(server.port)
    press(page)
    server.kill()
    other = "import server; server.CONTAINER = 'other'; server.main()"
    start_server(PORT=str(server.port), program=(sys.executable, "-c", other))
    told = re.compile(r"^container other answers after \d+\.\d s$")
    expect(page.get_by_role("listitem").last).to_have_text(told)
    expect(page.locator("#container")).to_have_text("other")


# Hidden tabs


def test_hidden_tab_does_not_ask(server: ServerProcess, open_page: OpenPage) -> None:
    page = open_page(server.port)
    press(page)
    hide(page)
    with page.expect_request("/"):
        bring_back(page)


def test_tab_hidden_during_the_heal_tells_the_start_time(
    server: ServerProcess, start_server: StartServer, open_page: OpenPage
) -> None:
    page = open_page(server.port)
    press(page)
    hide(page)
    server.kill()
    start_server(PORT=str(server.port))
    bring_back(page)
    expect(page.get_by_text("healthy again, running since")).to_be_visible()
    started = page.locator("#started").inner_text()
    assert steps(page) == ["made unhealthy", f"healthy again, running since {started}"]


def test_tab_shown_again_before_the_heal_tells_its_duration(
    server: ServerProcess, start_server: StartServer, open_page: OpenPage
) -> None:
    page = open_page(server.port)
    press(page)
    hide(page)
    bring_back(page)
    server.get("/health", user_agent="cct-probe")
    expect(page.get_by_text("probe 1 failed")).to_be_visible()
    server.kill()
    start_server(PORT=str(server.port))
    expect(page.get_by_text("healthy again after")).to_be_visible()


# Storage and clock


def test_full_storage_keeps_the_steps_until_a_reload(
    server: ServerProcess, open_page: OpenPage
) -> None:
    page = open_page(server.port)
    page.evaluate("sessionStorage.setItem('x', 'x'.repeat(5 * 1024 * 1024 - 1))")
    press(page)
    server.get("/health", user_agent="cct-probe")
    expect(page.get_by_text("probe 1 failed")).to_be_visible()
    page.reload()
    expect(page.get_by_role("listitem").first).to_contain_text("found unhealthy")


def test_blocked_storage_keeps_the_steps_until_a_reload(
    server: ServerProcess, start_server: StartServer, open_page: OpenPage, tmp_path: Path
) -> None:
    preferences = {"profile": {"default_content_setting_values": {"cookies": 2}}}  # 2: block
    (tmp_path / "Default").mkdir()
    (tmp_path / "Default" / "Preferences").write_text(json.dumps(preferences))
    page = open_page(server.port, profile=tmp_path)
    with pytest.raises(Error, match="SecurityError"):
        page.evaluate("sessionStorage")
    press(page)
    page.reload()
    expect(page.get_by_role("listitem")).to_contain_text(["found unhealthy"])
    server.kill()
    start_server(PORT=str(server.port))
    expect(page.get_by_text("healthy again after")).to_be_visible()
    expect(page.get_by_role("button")).to_be_enabled()


def test_storage_of_another_shape_is_dropped(server: ServerProcess, open_page: OpenPage) -> None:
    page = open_page(server.port)
    for stored in OTHER_SHAPES:
        page.evaluate("stored => sessionStorage.setItem('heal', stored)", stored)
        page.reload()
        expect(page.get_by_role("button")).to_be_enabled()
        assert steps(page) == [], stored
    press(page)


def test_clock_that_is_set_back_gives_no_negative_time(
    server: ServerProcess, start_server: StartServer, open_page: OpenPage
) -> None:
    page = open_page(server.port)
    press(page)
    page.clock.set_fixed_time(datetime(2020, 1, 1))
    server.get("/health", user_agent="cct-probe")
    expect(page.get_by_text("probe 1 failed")).to_have_text("0.0 s: probe 1 failed")
    server.kill()
    start_server(PORT=str(server.port))
    expect(page.get_by_text("healthy again, running since")).to_be_visible()
