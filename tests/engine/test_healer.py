"""The healer, and the heal without the socket."""

import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Report
from tests.engine.documents import task
from tests.stack import Stack, running_stack
from tools import ROOT
from tools.waiting import until

PAUSE = 5  # seconds in which the healer looks five times
NOSOCKET = "docker-compose.yml:deploy/docker-compose.nosocket.yml"


def test_healer_without_an_engine_says_so(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`up --wait` fails, and the log names the task to read."""
    dead = tmp_path / "dead.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(dead))  # nobody listens
    monkeypatch.setitem(stack.env, "DOCKER_SOCKET", str(dead))
    try:
        with pytest.raises(AssertionError, match=r"autoheal-1 (is unhealthy|exited)"):
            stack.compose("up", "-d", "--wait")
        sentence = r"The healer cannot reach the engine: see docs/tasks.md#[\w-]+\n"
        assert re.search(sentence, stack.logs("autoheal"))
    finally:
        monkeypatch.undo()
        stack.up()


def test_healer_is_started_with_app(stack: Stack) -> None:
    stack.compose("down")
    stack.compose("up", "-d", "--wait", "app")
    assert stack.inspect("autoheal")["State"]["Running"]


def test_healer_that_is_stopped_first_lets_app_stop(stack: Stack) -> None:
    """The commands of docs/tasks.md stop the healer first. Otherwise, its restart undoes the stop.

    A server that hangs takes 10 s to stop, so the restart and the stop overlap.
    """
    stop = task("Stop and start").partition("docker compose up")[0]
    stack.in_server("kill -STOP $pid")
    until(lambda: "found to be unhealthy" in stack.logs("autoheal"), "restarting")
    stack.shell(stop)
    end = time.monotonic() + PAUSE
    while time.monotonic() < end:
        assert not stack.inspect("app")["State"]["Running"]
    stack.up()


@pytest.fixture(scope="module")
def nosocket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Yield a running stack without a healer."""
    folder = tmp_path_factory.mktemp("nosocket") / "cct"
    with running_stack(folder, ROOT, COMPOSE_FILE=NOSOCKET) as stack:
        yield stack


def test_nosocket_gives_no_container_the_socket(nosocket: Stack) -> None:
    services = json.loads(nosocket.compose("config", "--format", "json"))["services"]
    assert set(services) == {"db", "seeder", "app"}
    assert "docker.sock" not in json.dumps(services)


def test_nosocket_heals_the_flag(nosocket: Stack, report: Report) -> None:
    before = nosocket.page()
    report(f"healthy again after {nosocket.heal():.1f} s, without the socket")
    assert nosocket.page()["accounts"] == before["accounts"]


def test_nosocket_heals_a_server_that_hangs(nosocket: Stack, report: Report) -> None:
    started = nosocket.started()
    began = time.monotonic()
    nosocket.in_server("kill -STOP $pid")
    nosocket.wait_for_heal(started)
    report(f"healthy again after {time.monotonic() - began:.1f} s, without the socket")
    assert len(nosocket.page()["accounts"]) == 50


def test_nosocket_restarts_nothing_without_the_database(nosocket: Stack) -> None:
    started = nosocket.started()
    nosocket.compose("stop", "db")
    end = time.monotonic() + 25  # seconds; more than three probes take
    while time.monotonic() < end:
        assert nosocket.get("/health")[0] == 200
        assert nosocket.get("/ready")[0] == 503
    nosocket.compose("start", "db")
    until(lambda: nosocket.get("/ready")[0] == 200, "ready")
    assert nosocket.started() == started
