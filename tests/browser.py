"""The page in the system's Chromium."""

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserType, Page, expect, sync_playwright

OpenPage = Callable[..., Page]

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
# The same browser without windows needs half the CPU time. It reads no settings of a user.
HEADLESS = ("chromium-headless-shell", *CHROMIUM)


def find_browser(names: tuple[str, ...]) -> str:
    """Return the path of a browser; skip the test without one."""
    for name in names:
        path = shutil.which(name)
        if path:
            return path
    pytest.skip("needs Chromium")


@pytest.fixture(scope="module")
def chromium() -> Iterator[BrowserType]:
    """Start Playwright; yield its launcher of Chromium."""
    find_browser(HEADLESS)
    expect.set_options(timeout=30_000)  # a busy machine is slow
    with sync_playwright() as playwright:
        yield playwright.chromium


@pytest.fixture(scope="module")
def browser(chromium: BrowserType) -> Iterator[Browser]:
    """Yield a browser. The tests of a file share the browser; each has its own profile."""
    with chromium.launch(executable_path=find_browser(HEADLESS)) as browser:
        yield browser


@pytest.fixture
def open_page(chromium: BrowserType, browser: Browser) -> Iterator[OpenPage]:
    """Yield a function that opens a page of a port.

    The test fails if the console has a message: an error of the script, or a violation of the
    Content-Security-Policy. With `profile`, a folder with a user's data, the page
    opens in a separate browser.
    """
    said: list[str] = []
    with ExitStack() as contexts:

        def open_path(
            port: int, path: str = "/", profile: Path | None = None, **options: Any
        ) -> Page:
            options["base_url"] = f"http://127.0.0.1:{port}"
            if profile:
                program = find_browser(CHROMIUM)
                context = chromium.launch_persistent_context(
                    profile, executable_path=program, **options
                )
            else:
                context = browser.new_context(**options)
            contexts.enter_context(context)
            page = context.new_page()
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
    texts = page.get_by_role("listitem").all_text_contents()
    return [re.sub(r"^\d+\.\d s: ", "", text) for text in texts]


def press(page: Page) -> None:
    """Press the button, and wait for the first step."""
    page.get_by_role("button").click()
    expect(page.get_by_text("made unhealthy")).to_be_visible()
