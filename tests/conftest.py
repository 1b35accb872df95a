"""Fixtures of all tests, and the summary at the end of the run."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator

import pytest

from tests.browser import browser, chromium, open_page  # noqa: F401, fixtures

Report = Callable[[str], None]


@pytest.fixture
def report(record_property: Callable[[str, object], None]) -> Report:
    """Return a function that keeps a line for the end of the run."""

    def keep(line: str) -> None:
        record_property("figure", line)

    return keep


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures, how long each part took, and the skipped tests with their reasons."""
    seconds: dict[str, float] = defaultdict(float)  # by folder
    skipped = Counter[str]()  # by file and reason
    terminalreporter.section("figures")
    for report in all_reports(terminalreporter):
        file, _, test = report.nodeid.partition("::")
        seconds[file.rpartition("/")[0]] += report.duration
        if report.when == "call":
            for _, figure in report.user_properties:
                terminalreporter.line(f"{test}: {figure}")
        if report.skipped and isinstance(report.longrepr, tuple):
            reason = report.longrepr[2].removeprefix("Skipped: ")
            skipped[f"{file}: {reason}"] += 1
    terminalreporter.section("parts")
    for folder, duration in sorted(seconds.items()):
        terminalreporter.line(f"the tests of {folder} took {duration:.0f} s together")
    for place, count in sorted(skipped.items()):
        terminalreporter.line(f"{count} skipped in {place}")


def all_reports(terminalreporter: pytest.TerminalReporter) -> Iterator[pytest.TestReport]:
    """Yield the reports of all tests."""
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                yield report
