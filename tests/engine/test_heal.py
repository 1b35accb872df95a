"""The heal of app: what the engine and the healer show."""

import time

from tests.conftest import Report
from tests.stack import Stack
from tools.waiting import until

START_PROBES = 5  # in the Dockerfile: a start period of 5 s with a probe each second
RETRIES = 3


def count_probes(stack: Stack, output: str) -> int:
    """Return how many of the latest probes of app had this output."""
    probes = stack.inspect("app")["State"]["Health"]["Log"]
    return [probe["Output"] for probe in probes].count(output)


def test_flag_is_healed(stack: Stack, report: Report) -> None:
    before = stack.page()
    heals = stack.count_heals()
    started = stack.started()
    began = time.monotonic()
    _, reason = stack.get("/make-unhealthy")
    until(lambda: count_probes(stack, reason) >= RETRIES, "unhealthy")
    stack.wait_for_heal(started)
    report(f"healthy again after {time.monotonic() - began:.1f} s")

    after = stack.page()
    assert after["started"] != before["started"]
    assert after["reason"] == ""
    assert after["container"] == stack.inspect("app")["Id"][:12]
    assert after["accounts"] == before["accounts"]
    assert stack.count_heals() > heals


def test_flag_right_after_the_start_is_healed(stack: Stack) -> None:
    """Failed probes in the start period do not count, but those after it do."""
    stack.compose("up", "-d", "--force-recreate", "--no-deps", "app")
    until(lambda: stack.get("/make-unhealthy")[0] == 200, "unhealthy")
    stack.wait_for_heal(stack.started())
    failed = stack.logs("app").count("'/health' 503")
    assert RETRIES <= failed < 2 * (START_PROBES + RETRIES)
