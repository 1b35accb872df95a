"""Fixtures of all tests, and the figures at the end of the run."""

import os
import re
from collections.abc import Callable, Generator

import pytest

from tests.browser import browser, open_page  # noqa: F401, fixtures

Report = Callable[[str], None]


@pytest.fixture
def report(record_property: Callable[[str, object], None]) -> Report:
    """Return a function that keeps a line for the end of the run."""

    def keep(line: str) -> None:
        record_property("figure", line)

    return keep


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a skipped test if its reason does not match the pattern MAY_SKIP.

    Without MAY_SKIP, every reason is allowed.
    """
    report = yield
    if report.skipped:
        assert isinstance(report.longrepr, tuple)
        why = report.longrepr[2]
        if not re.search(os.environ.get("MAY_SKIP", ""), why):
            report.outcome = "failed"
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the lines that tests have kept."""
    terminalreporter.section("figures")
    for test in terminalreporter.getreports("passed"):
        for _, line in test.user_properties:
            test_name = test.nodeid.rpartition("::")[2]
            terminalreporter.line(f"{test_name}: {line}")
