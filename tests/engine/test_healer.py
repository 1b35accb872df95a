"""The healer: its socket, its start and its stop."""

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.documents import TASKS
from tests.stack import Stack
from tools.waiting import until

PAUSE = 5  # seconds; a restart that is under way would show


def make_dead_socket(path: Path) -> None:
    """Make a socket, to which nobody listens."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (make_dead_socket, "The healer cannot reach the engine"),
        (Path.touch, "unix socket is currently not available"),
    ],
)
def test_healer_without_an_engine_says_so(
    stack: Stack,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[Path], None],
    message: str,
) -> None:
    """`up --wait` fails, and docs/tasks.md explains the message in the log."""
    path = tmp_path / "my.sock"
    make(path)
    monkeypatch.setitem(stack.env, "DOCKER_SOCKET", str(path))
    with pytest.raises(AssertionError, match=r"autoheal-1 (is unhealthy|exited)"):
        stack.up()
    assert message in stack.logs("autoheal")
    assert message in TASKS.text
    monkeypatch.undo()
    stack.up()


def test_socket_that_does_not_exist_is_an_error(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = tmp_path / "my.sock"
    monkeypatch.setitem(stack.env, "DOCKER_SOCKET", str(absent))
    with pytest.raises(AssertionError, match=f"path does not exist: {absent}"):
        stack.up()
    assert not absent.exists()  # the engine would make a folder
    monkeypatch.undo()
    stack.up()


def test_healer_is_started_with_app(stack: Stack) -> None:
    stack.compose("down")
    stack.compose("up", "-d", "--wait", "app")
    assert stack.inspect("autoheal")["State"]["Running"]


def test_healer_that_is_stopped_first_lets_app_stop(stack: Stack) -> None:
    """The commands of docs/tasks.md stop the healer first, since its restart can undo the stop.

    A server that hangs takes 10 s to stop, so the restart and the stop overlap.
    """
    stop = TASKS.commands("Stop and start").partition("docker compose up")[0]
    heals = stack.count_heals()
    stack.in_server("kill -STOP $pid")
    until(lambda: stack.count_heals() > heals, "restarting")
    stack.shell(stop)
    end = time.monotonic() + PAUSE
    while time.monotonic() < end:
        assert not stack.inspect("app")["State"]["Running"]
        time.sleep(0.1)
    stack.up()


def test_with_the_filter_the_healer_has_no_engine_socket(stack: Stack) -> None:
    files = ("-f", "docker-compose.yml", "-f", "deploy/docker-compose.proxy.yml")
    config = json.loads(stack.compose(*files, "config", "--format", "json"))
    healer = config["services"]["autoheal"]
    assert [volume["source"] for volume in healer["volumes"]] == ["filtered"]
