"""The page follows a heal, a restart and an outage, in a real browser."""

import pytest
from playwright.sync_api import Error, expect

from tests.app.conftest import ServerProcess, StartServer, server_with
from tests.browser import OpenPage, bring_back, expect_last_step, expect_state, hide, press, steps
from tools.private_database import PrivateDatabase
from tools.waiting import until


def test_reload_begins_with_found_unhealthy(server: ServerProcess, open_page: OpenPage) -> None:
    page = open_page(server.port)
    press(page)
    server.probe()
    expect_last_step(page, "probe 1 failed")
    page.reload()
    expect_last_step(page, "found unhealthy")
    server.probe()
    expect_last_step(page, "probe 2 failed")
    server.restart()
    expect_last_step(page, "healthy again")  # nobody knows after how long


def test_other_container_that_answers_is_named(
    server: ServerProcess, start_server: StartServer, open_page: OpenPage
) -> None:
    """After the button, another healthy server answers, as behind a balancer."""
    page = open_page(server.port)
    press(page)
    server.kill()
    start_server(PORT=str(server.port), program=server_with(CONTAINER="other"))
    expect_last_step(page, r"container other answers after \d+\.\d s")
    expect(page.locator("#container")).to_have_text("other")


def test_lost_network_is_told_but_not_a_lost_request(
    server: ServerProcess, open_page: OpenPage
) -> None:
    page = open_page(server.port)
    press(page)
    page.route("/state", lambda route: route.abort(), times=1)
    page.wait_for_event("requestfailed")
    server.probe()
    expect_last_step(page, "probe 1 failed")
    page.context.set_offline(True)
    expect_last_step(page, "no answer")
    expect_state(page, "no answer")
    page.context.set_offline(False)
    expect_state(page, "unhealthy")
    assert steps(page) == ["made unhealthy", "probe 1 failed", "no answer"]


def test_accounts_come_back_with_the_database(
    database: PrivateDatabase, server: ServerProcess, open_page: OpenPage
) -> None:
    """They are read again after an outage, so an edit shows. Meanwhile, the old ones stay."""
    page = open_page(server.port, "/?after=50")
    page.get_by_role("button").focus()
    database.sql("UPDATE cct.accounts SET name = 'Edited' WHERE id = 51")
    with database.stopped():
        expect(page.locator("#database")).to_have_text("error")
        expect(page.get_by_role("rowheader")).to_have_count(50)
    expect(page.get_by_role("rowheader", name="Edited")).to_be_visible()
    expect(page.get_by_role("link", name="Next")).to_be_visible()
    expect(page.get_by_role("button")).to_be_focused()


# Tabs


def test_hidden_tab_asks_nothing_and_is_right_when_shown(
    server: ServerProcess, open_page: OpenPage
) -> None:
    page = open_page(server.port)
    press(page)
    hide(page)
    with pytest.raises(Error, match="Timeout"):
        page.wait_for_event("request", timeout=2000)
    server.restart()
    bring_back(page)
    expect_last_step(page, "healthy again")  # nobody saw when
    expect_state(page, "healthy")
    hide(page)
    server.get("/make-unhealthy")
    bring_back(page)
    expect_last_step(page, "found unhealthy")


def test_open_tabs_leave_no_line_in_the_log(server: ServerProcess, open_page: OpenPage) -> None:
    pages = [open_page(server.port) for _ in range(2)]
    until(lambda: server.log.read_text().count("'/' 200") == len(pages), "logged")
    told = server.lines()
    for page in pages:
        for _ in range(3):
            page.wait_for_event("requestfinished")
    assert server.lines() == told
