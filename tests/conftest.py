"""What all tests share: lines on the terminal, and a summary at the end of the run."""

from collections import Counter, defaultdict
from collections.abc import Callable

import pytest

from tests.browser import open_page  # noqa: F401, a fixture

Report = Callable[[str], None]


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Report:
    """Give a function that prints a line, although pytest captures what tests print."""

    def show(line: str) -> None:
        with capsys.disabled():
            print(f"\n{line}", end="", flush=True)

    return show


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how long each part took, and which tests were skipped and why."""
    seconds: dict[str, float] = defaultdict(float)  # by the folder of the tests
    skipped = Counter[str]()  # by file and reason
    for reports in terminalreporter.stats.values():
        for report in reports:
            if not isinstance(report, pytest.TestReport):
                continue
            file = report.nodeid.partition("::")[0]
            folder = file.rpartition("/")[0]
            seconds[folder] += report.duration
            if report.skipped and isinstance(report.longrepr, tuple):
                reason = report.longrepr[2].removeprefix("Skipped: ")
                skipped[f"{file}: {reason}"] += 1
    terminalreporter.section("parts")
    for folder, duration in sorted(seconds.items()):
        terminalreporter.line(f"{folder} took {duration:.0f} s")
    for place, count in sorted(skipped.items()):
        terminalreporter.line(f"{count} skipped in {place}")
