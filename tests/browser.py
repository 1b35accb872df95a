"""The page in the system's Chromium."""

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

OpenPage = Callable[..., Page]

# The first one has no windows, and needs half the CPU time.
CHROMIUM = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


def find_browser() -> str:
    """Return the path of a browser; skip the test without one."""
    for name in CHROMIUM:
        path = shutil.which(name)
        if path:
            return path
    pytest.skip("needs Chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Yield a browser. The tests of a file share the browser; each has its own profile."""
    program = find_browser()
    expect.set_options(timeout=30_000)  # a busy machine is slow
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=program) as browser,
    ):
        yield browser


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Yield a function that opens a page of a port.

    The test fails if the console has a message: an error of the script, or a violation of the
    Content-Security-Policy.
    """
    said: list[str] = []
    with ExitStack() as contexts:

        def open_path(port: int, path: str = "/", **options: Any) -> Page:
            options["base_url"] = f"http://127.0.0.1:{port}"
            context = contexts.enter_context(browser.new_context(**options))
            page = context.new_page()
            # A request that a test answers may be under way at the end of the test.
            contexts.callback(page.unroute_all, behavior="ignoreErrors")
            page.on("console", lambda message: said.append(message.text))
            page.on("pageerror", lambda error: said.append(str(error)))
            page.goto(path)
            return page

        yield open_path

    for text in said:
        # The browser logs this message for a 403, 404 or 503, and if no server answers.
        assert text.startswith("Failed to load resource"), text


def steps(page: Page) -> list[str]:
    """Return the steps of the heal without their times."""
    return re.sub(r"(?m)^\d+\.\d s\t", "", page.locator("#steps").inner_text()).splitlines()


def press(page: Page) -> None:
    """Press the button, and wait for the first step."""
    page.get_by_role("button").click()
    expect_last_step(page, "made unhealthy")


def expect_last_step(page: Page, step: str) -> None:
    """Wait for a step, given as a pattern."""
    expect(page.get_by_role("log")).to_have_text(re.compile(rf"{step}\s*$"))


def expect_state(page: Page, word: str, seconds: float = 30) -> None:
    """Wait for a state, on the page and in the title of its tab."""
    expect(page.locator("#health")).to_have_text(word, timeout=seconds * 1000)
    expect(page).to_have_title(f"{word} · Accounts")


def hide(page: Page) -> None:
    """Hide the tab.

    Playwright keeps every tab visible, so this function sets `document.hidden` itself.
    """
    page.evaluate("Object.defineProperty(document, 'hidden', {value: true, configurable: true})")
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")


def bring_back(page: Page) -> None:
    """Show the tab again."""
    page.evaluate("delete document.hidden")
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
