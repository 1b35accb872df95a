"""Overload: other clients do not notice it, or get a 503 in time."""

import time

import pytest

MAX_AHEAD = 8
from tests.app.attacks import (
    Attack,
    ask_for_random_pages,
    attacked,
    leave_a_backlog,
    pipeline,
    send_bomb,
    send_without_pause,
)
from tests.app.conftest import ServerProcess, StartServer, linux
from tests.conftest import Report
from tools.private_database import PrivateDatabase
from tools.waiting import until

pytestmark = pytest.mark.timed


def use(server: ServerProcess, seconds: float) -> float:
    """Ask for /health and a page for some seconds; return the longest time of /health.

    Raise AssertionError if a status is not 200.
    """
    slowest = 0.0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.monotonic()
        assert server.get("/health")[0] == 200
        slowest = max(slowest, time.monotonic() - began)
        assert server.get("/")[0] == 200
    return slowest


# Attacks


def use_under_attack(server: ServerProcess, attack: Attack, clients: int) -> float:
    """Use the server during an attack; return the longest time of /health."""
    mark = f"/before-{clients}"
    server.get(mark)
    server.wait_for(mark)  # the log writes a batch of lines at a time
    lines = len(server.lines())
    with attacked(server.port, attack, clients):
        until(lambda: len(server.lines()) > lines + 20, "under attack")
        return use(server, seconds=2)


def assert_nobody_noticed(server: ServerProcess, report: Report, slowest: float) -> None:
    """Assert that an attack has cost little time and memory, and logged no event."""
    megabytes = server.memory("VmHWM") / 1024
    report(f"/health within {slowest:.2f} s, {megabytes:.0f} MB")
    assert slowest < 0.5
    assert megabytes < 100
    assert len(server.events()) == 2, server.events()  # it has started, no more


def test_nobody_notices_requests_without_pause(server: ServerProcess, report: Report) -> None:
    slowest = use_under_attack(server, send_without_pause, 1)
    slowest = max(slowest, use_under_attack(server, send_without_pause, 100))
    assert_nobody_noticed(server, report, slowest)


@linux
def test_backlog_is_dropped_with_its_connection(server: ServerProcess, report: Report) -> None:
    """Twenty clients send a million requests, and then nothing more."""
    with attacked(server.port, leave_a_backlog, 20):
        until(lambda: server.log.read_text().count("GET '/nothing'") >= 20, "under attack")
        slowest = use(server, seconds=1)
        before = server.cpu_time()
        time.sleep(0.5)
        assert server.cpu_time() < before + 0.1
        assert server.unread_bytes() == []
    assert server.log.read_text().count("GET '/nothing'") < 20 * MAX_AHEAD

    slowest = max(slowest, use(server, seconds=5))
    with attacked(server.port, ask_for_random_pages, 400):
        until(lambda: server.log.read_text().count("GET '/?after=") > 500, "under load")
    assert " 503 " not in server.log.read_text()
    assert_nobody_noticed(server, report, slowest)


def test_nobody_notices_pipelines(server: ServerProcess, report: Report) -> None:
    slowest = use_under_attack(server, pipeline, 1)
    slowest = max(slowest, use_under_attack(server, pipeline, 100))
    assert " 429 " not in server.log.read_text()
    assert_nobody_noticed(server, report, slowest)


def test_nobody_notices_zip_bombs(server: ServerProcess, report: Report) -> None:
    slowest = use_under_attack(server, send_bomb, 1)
    slowest = max(slowest, use_under_attack(server, send_bomb, 20))
    assert_nobody_noticed(server, report, slowest)


def test_nobody_notices_a_load(server: ServerProcess, report: Report) -> None:
    """The clients keep their connections, and no request is refused."""
    slowest = use_under_attack(server, ask_for_random_pages, 64)
    slowest = max(slowest, use_under_attack(server, ask_for_random_pages, 1024))
    log = server.log.read_text()
    assert " 429 " not in log
    assert " 503 " not in log
    assert_nobody_noticed(server, report, slowest)


# A 503 in time


def get_in_time(server: ServerProcess, path: str) -> tuple[int, str]:
    """Return the status and text of an answer; assert that it took less than 2 s."""
    began = time.monotonic()
    answer = server.get(path)
    assert time.monotonic() < began + 2
    return answer


def test_hanging_database_is_a_503_in_time(
    database: PrivateDatabase, start_server: StartServer
) -> None:
    server = start_server(DB_TIMEOUT="1")
    assert server.get()[0] == 200
    with database.hanging(), attacked(server.port, ask_for_random_pages, 1000):
        until(lambda: " 503 " in server.log.read_text(), "refused")
        for _ in range(2):
            status, text = get_in_time(server, "/")
            assert status == 503
            assert "The database does not answer. Try again in a few seconds." in text
            status, text = get_in_time(server, "/ready")
            assert status == 503
            assert text.startswith("not ready: no answer: ")
            assert get_in_time(server, "/health") == (200, "healthy\n")
    until(lambda: server.get()[0] == 200, "served again")
    server.wait_for("accounts can be read again")
    lines = server.events()
    assert len(lines) < 10, lines
    assert any(line.startswith("accounts cannot be read: no answer: ") for line in lines)


def test_too_many_pages_are_a_503_in_time(
    database: PrivateDatabase, start_server: StartServer
) -> None:
    server = start_server(DB_TIMEOUT="1")
    assert server.get()[0] == 200
    with attacked(server.port, ask_for_random_pages, 3000):
        until(lambda: " 503 " in server.log.read_text(), "refused")
        for _ in range(2):
            status, text = get_in_time(server, "/")
            assert status == 200 or "Too many pages are asked for at once." in text
            status, text = get_in_time(server, "/ready")
            assert status == 200 or text.startswith("not ready: busy: ")
            assert get_in_time(server, "/health") == (200, "healthy\n")
    until(lambda: server.get()[0] == 200, "served again")
    lines = server.events()
    assert len(lines) < 10, lines
    assert not any("no answer" in line for line in lines)
    assert "accounts can be read again" not in lines
