"""Load: many clients, and clients that are idle, slow or hostile. The others get their answers."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.app.attacks import (
    PAGE,
    Attack,
    ask_for_random_pages,
    attacked,
    open_connections,
    pipeline,
    send_many_fields,
    send_single_bytes,
    send_without_pause,
    send_zeros,
)
from tests.app.conftest import ServerProcess, StartServer, linux, server_with
from tests.conftest import Report
from tools.waiting import until

# Load

ATTACKS = [
    (ask_for_random_pages, 1000),
    (pipeline, 20),
    (send_without_pause, 20),
    (send_zeros, 30),
    (send_many_fields, 300),
    (send_single_bytes, 20),
]


def wait_for_load(server: ServerProcess, clients: int) -> None:
    """Wait until as many requests as clients are in the log."""
    until(lambda: server.log.read_text().count("\n") > clients, "under load")


@linux
@pytest.mark.timed
@pytest.mark.parametrize(("attack", "clients"), ATTACKS)
def test_nobody_notices_an_attack(
    server: ServerProcess, report: Report, attack: Attack, clients: int
) -> None:
    """No probe fails (it waits for 2 s), and the server needs little of its 256 MB."""
    slowest = 0.0
    with attacked(server.port, attack, clients):
        wait_for_load(server, clients)
        end = time.monotonic() + 4
        while time.monotonic() < end:
            began = time.monotonic()
            assert server.get("/health", 2) == (200, "healthy\n")
            slowest = max(slowest, time.monotonic() - began)
            assert server.get("/")[0] == 200
    megabytes = server.peak_memory() / 1024
    report(f"/health within {slowest:.2f} s, {megabytes:.0f} MB")
    assert megabytes < 200


@pytest.mark.timed
def test_too_many_pages_are_a_503_in_time(start_server: StartServer) -> None:
    """A request that waits for longer than DB_TIMEOUT is given up, so the others need not wait."""
    server = start_server(DB_TIMEOUT="0.1")
    with attacked(server.port, ask_for_random_pages, 3000):
        wait_for_load(server, 3000)
        for _ in range(3):
            status, text = server.get("/", 5)
            assert status == 200 or "The database does not answer." in text
            status, text = server.get("/ready", 5)
            assert status == 200 or text.startswith("not ready: The database does not answer.")
            assert server.get("/health", 2) == (200, "healthy\n")
    assert " 503 " in server.log.read_text()
    until(lambda: server.get()[0] == 200, "served again")


# Connections


@contextmanager
def connections(
    server: ServerProcess, count: int, buffer: int = 65536
) -> Iterator[list[socket.socket]]:
    """Open connections, and close them at the end. `buffer` is the receive buffer in bytes."""
    with ExitStack() as stack:
        clients = [stack.enter_context(socket.socket()) for _ in range(count)]
        for client in clients:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            client.settimeout(10)
            client.connect(("127.0.0.1", server.port))
        yield clients


def test_probe_gets_through_when_descriptors_are_used_up(start_server: StartServer) -> None:
    """The oldest connections are closed. One of them reads nothing, which delays no other."""
    server = start_server("-n 256")
    with connections(server, 1, buffer=2048) as (deaf,), connections(server, 1) as (idle,):
        deaf.setblocking(False)
        deaf.send(PAGE * 10_000)
        with attacked(server.port, open_connections, 1):
            assert idle.recv(1) == b""  # closed
            for _ in range(100):
                assert server.get("/health", 2) == (200, "healthy\n")
                time.sleep(0.02)


def test_idle_connections_stop_nobody(server: ServerProcess) -> None:
    """The server begins with 1,024 descriptors, and raises this limit."""
    with connections(server, 2000):
        assert server.get()[0] == 200  # all have been accepted
        server.assert_serving()


@linux
def test_clients_that_never_read_are_cut_off(start_server: StartServer) -> None:
    server = start_server(program=server_with(UNREAD_TIMEOUT=3000))
    files = server.open_files()
    with connections(server, 20, buffer=8192) as deaf:
        for client in deaf:
            client.sendall(PAGE * 20)
        until(lambda: server.open_files() >= files + 20, "connected")
        server.assert_serving()
        until(lambda: server.open_files() < files + 10, "cut off", 10)
