"""Fixtures of all tests, and the summary at the end of the run."""

import os
import re
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from tests.browser import browser, open_page  # noqa: F401, fixtures

Report = Callable[[str], None]

BEGAN = time.monotonic()


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
    may_skip = os.environ.get("MAY_SKIP", "")
    if report.skipped and not re.search(may_skip, reason(report)):
        report.outcome = "failed"
    return report


def reason(report: pytest.TestReport) -> str:
    """Return why a test was skipped."""
    assert isinstance(report.longrepr, tuple)
    return report.longrepr[2].removeprefix("Skipped: ")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures, how long the run took, and the skipped tests with their reasons.

    Append the summary to the file SUMMARY. If all runs pass, `make test` shows that file.
    """
    terminalreporter.section("figures")
    skipped = Counter[str]()  # by file and reason
    for report in all_reports(terminalreporter):
        file, _, test = report.nodeid.partition("::")
        if report.when == "call":
            for _, figure in report.user_properties:
                terminalreporter.line(f"{test}: {figure}")
        if report.skipped:
            skipped[f"{file}: {reason(report)}"] += 1
    config = terminalreporter.config
    part = " ".join([*config.args, config.option.markexpr]).strip()  # the paths, and the marks
    lines = [f"{time.monotonic() - BEGAN:.0f} s for {part}"]
    for place, count in sorted(skipped.items()):
        lines.append(f"  {count} skipped in {place}")
    terminalreporter.section("summary")
    for line in lines:
        terminalreporter.line(line)
    summary = os.environ.get("SUMMARY")
    is_worker = "PYTEST_XDIST_WORKER" in os.environ
    if summary and not is_worker:
        with Path(summary).open("a") as output:
            output.write("\n".join([*lines, ""]))


def all_reports(terminalreporter: pytest.TerminalReporter) -> Iterator[pytest.TestReport]:
    """Yield the reports of all tests."""
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                yield report
