"""Connections: too many, idle, or never read. Other clients do not notice them."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from tests.app.attacks import PAGE, attacked, open_connections
from tests.app.conftest import ServerProcess, StartServer, linux, server_with
from tools.waiting import until


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
