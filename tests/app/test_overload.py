"""Overload: other clients do not notice it. Run these tests alone: they need both cores."""

import resource
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from server import MAX_AHEAD
from tests.app.attacks import (
    LAST_PAGE,
    PAGE,
    Attack,
    ask_for_random_pages,
    attacked,
    leave_a_backlog,
    open_connections,
    pipeline,
    send_bomb,
    send_without_pause,
)
from tests.app.conftest import ServerProcess, StartServer, linux
from tests.conftest import Report
from tools.private_database import PrivateDatabase
from tools.waiting import until

LISTENS = "0A"  # states in the kernel's table of connections
IS_OVER = "06"


@pytest.fixture(scope="module", autouse=True)
def many_descriptors() -> None:
    """Let the tests and their attackers open many connections."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))


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


@contextmanager
def connections(
    server: ServerProcess, count: int, buffer: int = 0
) -> Iterator[list[socket.socket]]:
    """Open connections, and close them at the end. `buffer` is the receive buffer in bytes."""
    with ExitStack() as stack:
        clients = [stack.enter_context(socket.socket()) for _ in range(count)]
        for client in clients:
            if buffer:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            client.settimeout(10)
            client.connect(("127.0.0.1", server.port))
        yield clients


def unread_bytes(server: ServerProcess) -> list[int]:
    """Return the number of unread bytes for each connection of the server."""
    unread = []
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, queues, *_ = line.split()
        if local.endswith(f":{server.port:04X}") and state not in (LISTENS, IS_OVER):
            unread.append(int(queues.partition(":")[0], 16))
    return unread


def cpu_time(server: ServerProcess) -> float:
    """Return the CPU seconds of the server since its start."""
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])  # as a user, and in the kernel
    return ticks / 100


# Attacks


def use_under_attack(server: ServerProcess, attack: Attack, clients: int) -> float:
    """Use the server during an attack; return the longest time of /health."""
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
def test_backlog_goes_with_its_sender(server: ServerProcess, report: Report) -> None:
    """Twenty clients send a million requests, and then nothing more."""
    with attacked(server.port, leave_a_backlog, 20):
        until(lambda: server.log.read_text().count("GET '/nothing'") >= 20, "under attack")
        slowest = use(server, seconds=1)
        before = cpu_time(server)
        time.sleep(0.5)
        assert cpu_time(server) < before + 0.1
        assert unread_bytes(server) == []
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


# Too many pages


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
    lines = server.events()
    assert len(lines) < 10, lines
    assert any(line.startswith("accounts cannot be read: no answer: ") for line in lines)
    assert "accounts can be read again" in lines


def test_more_pages_than_can_be_read_are_a_503_in_time(
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


# Connections


def test_probe_gets_through_when_descriptors_are_used_up(start_server: StartServer) -> None:
    server = start_server("-n 256")
    with connections(server, 1) as (oldest,), attacked(server.port, open_connections, 1):
        assert oldest.recv(1) == b""  # closed
        for _ in range(100):
            assert server.get("/health", 2) == (200, "healthy\n")
            time.sleep(0.02)


def test_idle_and_slow_connections_stop_nobody(server: ServerProcess) -> None:
    """A slow client sends a byte a second."""
    with connections(server, 2000), connections(server, 100) as slow:
        for byte in PAGE[:5]:
            for client in slow:
                client.send(bytes([byte]))
            server.assert_serving()
            time.sleep(1)


@linux
def test_clients_that_never_read_are_cut_off(start_server: StartServer) -> None:
    code = "import run, server; run.UNREAD_TIMEOUT = 2; server.main()"
    server = start_server(program=(sys.executable, "-c", code))
    with connections(server, 20, buffer=8192) as deaf:
        for client in deaf:
            client.sendall(PAGE * (MAX_AHEAD + 1))
        until(lambda: sum(unread_bytes(server)) > 20 * 50_000, "full of unread pages")
        server.assert_serving()
        until(lambda: unread_bytes(server) == [], "cut off", 6)


@linux
def test_unread_answer_of_a_closed_connection_is_dropped(start_server: StartServer) -> None:
    """The server has closed the connection. The kernel still has the answer."""
    code = "import run, server; run.UNREAD_TIMEOUT = 1; server.main()"
    server = start_server(program=(sys.executable, "-c", code))
    with connections(server, 20, buffer=2048) as deaf:
        for client in deaf:
            client.sendall(LAST_PAGE)
        until(lambda: sum(unread_bytes(server)) > 20 * 5_000, "full of unread pages")
        until(lambda: unread_bytes(server) == [], "dropped", 6)
