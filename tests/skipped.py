"""The end of a run of the tests: what was skipped, and what it needs."""

from collections import Counter, defaultdict

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List the skipped tests by what they need."""
    needs: dict[str, Counter[str]] = defaultdict(Counter)
    for report in terminalreporter.getreports("skipped"):
        reason = str(report.longrepr[2]).removeprefix("Skipped: ")
        needs[reason][report.nodeid.partition("::")[0]] += 1
    if needs:
        terminalreporter.section("skipped")
    for need, files in needs.items():
        terminalreporter.line(f"{', '.join(f'{count} of {file}' for file, count in files.items())}: {need}")
