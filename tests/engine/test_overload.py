"""Overload of the real stack."""

import time

import pytest

from tests.app.attacks import attacked, pipeline
from tests.stack import Stack
from tools.waiting import get, until

pytestmark = pytest.mark.timed


def test_pipelining_does_not_make_app_unhealthy(stack: Stack) -> None:
    """Without a pause in the server, a connection with many requests keeps the probe waiting."""
    with attacked(stack.port, pipeline, 20):
        until(lambda: "GET '/nothing'" in stack.logs("app"), "under attack")
        end = time.monotonic() + 12  # two probes
        while time.monotonic() < end:
            assert get(stack.port, "/health", 0.5) == (200, "healthy\n")
            assert stack.inspect("app")["State"]["Health"]["FailingStreak"] == 0
