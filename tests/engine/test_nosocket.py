"""The heal without the engine's socket."""

import time
from collections.abc import Iterator

import pytest

from tests.conftest import Report
from tests.documents import TASKS
from tests.stack import Stack
from tools.waiting import until

NOSOCKET = "docker-compose.yml:deploy/docker-compose.nosocket.yml"


@pytest.fixture(scope="module")
def nosocket(shared_stack: Stack) -> Iterator[Stack]:
    """Yield the stack without a healer, as the commands of docs/tasks.md start it."""
    stack = shared_stack
    stack.shell(TASKS.commands("Heal without the socket"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(stack.env, "COMPOSE_FILE", NOSOCKET)
        yield stack
        stack.compose("down")
    stack.up()


def test_flag_is_healed(nosocket: Stack, report: Report) -> None:
    assert "autoheal" not in nosocket.compose("ps", "--all", "--services")
    before = nosocket.page()
    report(f"healthy again after {nosocket.heal():.1f} s, without the socket")
    assert nosocket.page()["accounts"] == before["accounts"]


def test_server_that_hangs_is_healed(nosocket: Stack, report: Report) -> None:
    started = nosocket.started()
    began = time.monotonic()
    nosocket.in_server("kill -STOP $pid")
    nosocket.wait_for_heal(started)
    report(f"healthy again after {time.monotonic() - began:.1f} s, without the socket")
    assert len(nosocket.page()["accounts"]) == 50


def test_nothing_is_restarted_without_the_database(nosocket: Stack) -> None:
    started = nosocket.started()
    nosocket.compose("stop", "db")
    end = time.monotonic() + 25  # seconds; more than three probes take
    while time.monotonic() < end:
        assert nosocket.get("/health")[0] == 200
        assert nosocket.get("/ready")[0] == 503
        time.sleep(0.2)
    nosocket.compose("start", "db")
    until(lambda: nosocket.get("/ready")[0] == 200, "ready")
    assert nosocket.started() == started
