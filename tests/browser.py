"""The page in the system's Chromium."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserType, Page, sync_playwright

OpenPage = Callable[..., Page]


def find_chromium() -> str:
    """Return the path of the browser. Without one skip the test; with REQUIRE_BROWSER=1 fail it."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        path = shutil.which(name)
        if path:
            return path
    if os.environ.get("REQUIRE_BROWSER") == "1":
        pytest.fail("REQUIRE_BROWSER=1, but there is no Chromium")
    pytest.skip("needs Chromium")


@pytest.fixture(scope="module")
def chromium() -> Iterator[BrowserType]:
    """Give what launches browsers."""
    find_chromium()
    with sync_playwright() as playwright:
        yield playwright.chromium


@pytest.fixture(scope="module")
def browser(chromium: BrowserType) -> Iterator[Browser]:
    """Give a browser. The tests of a file share it, and each has a new profile in it."""
    with chromium.launch(executable_path=find_chromium()) as browser:
        yield browser


@pytest.fixture
def open_page(chromium: BrowserType, browser: Browser) -> Iterator[OpenPage]:
    """Give a function that opens a page of a port, and returns it.

    The test fails if a console says anything: an error of the script, or a violation of the
    Content-Security-Policy. With `profile`, a folder of a user's data, the page is in a browser of
    its own.
    """
    said: list[str] = []
    with ExitStack() as contexts:

        def open_path(
            port: int, path: str = "/", profile: Path | None = None, **options: Any
        ) -> Page:
            options["base_url"] = f"http://127.0.0.1:{port}"
            if profile:
                program = find_chromium()
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
        # The browser says this of a 403, 404 or 503, and of a server that is away.
        assert text.startswith("Failed to load resource"), text


def steps(page: Page) -> list[str]:
    """Return the steps of the heal without their times."""
    texts = page.get_by_role("listitem").all_text_contents()
    return [re.sub(r"^\d+\.\d s: ", "", text) for text in texts]
