"""At the end of a run: what was skipped, and what it needs."""

from collections import Counter

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = terminalreporter.getreports("skipped")
    skipped = Counter((str(report.longrepr[2]), report.nodeid.partition("::")[0]) for report in reports)
    for (reason, file), count in sorted(skipped.items()):
        terminalreporter.line(f"{count} of {file}: {reason}")
