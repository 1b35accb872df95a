"""Overload, bad input and two hundred faults: the server goes on serving, and keeps nothing of them."""

import random
import re
import resource
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path

import pytest
from asyncmy.errors import MySQLError

from tests.attacks import (
    HEAD,
    Attack,
    ask_for_random_pages,
    attacked,
    open_connections,
    pipeline,
    send_bomb,
)
from tests.conftest import Report, ServerProcess, StartServer
from tests.database import DatabaseServer
from tests.helpers import until

VALID = b"GET /?after=1 " + HEAD + b"Accept: text/html\r\nConnection: close\r\n\r\n"
ACCESS = re.compile(r"127\.0\.0\.1 \w+ '.*' \d+ \d+\.\d+ s")
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(
    resource.RLIMIT_NOFILE, (min(hard, 8192), hard)
)  # for the tests and their attackers


def events(server: ServerProcess) -> list[str]:
    """Return the lines of the log that are not of the access log."""
    return [line for line in server.lines() if not ACCESS.fullmatch(line)]


@pytest.mark.parametrize(
    ("attack", "count"),
    [(pipeline, 1), (pipeline, 100), (send_bomb, 1), (send_bomb, 20), (ask_for_random_pages, 1000)],
)
def test_nobody_else_notices_an_attack(
    server: ServerProcess, report: Report, attack: Attack, count: int
) -> None:
    slowest = {"/health": 0.0, "/": 0.0}
    with attacked(server.port, attack, count):
        until(lambda: len(server.lines()) > 20, "under attack")
        end = time.monotonic() + 4
        while time.monotonic() < end:
            for path, seconds in slowest.items():
                began = time.monotonic()
                assert server.get(path)[0] == 200
                slowest[path] = max(seconds, time.monotonic() - began)
    times = ", ".join(f"{path} within {seconds:.2f} s" for path, seconds in slowest.items())
    report(
        f"{attack.__name__}, {count} connections: {times}, {server.memory('VmHWM') / 1024:.0f} MB"
    )
    assert slowest["/health"] < 0.5
    assert server.memory("VmHWM") < 100 * 1024
    assert len(events(server)) == 2, events(server)  # it has started, no more


@pytest.mark.parametrize(
    ("clients", "kind", "sentence"),
    [
        (1000, "no answer", "The database does not answer."),
        (3000, "busy", "Too many pages are asked for at once."),
    ],
)
def test_more_pages_than_can_be_read_are_a_503_in_time_that_says_why(
    database: DatabaseServer, start_server: StartServer, clients: int, kind: str, sentence: str
) -> None:
    server = start_server(DB_TIMEOUT="1")
    assert server.get()[0] == 200
    hangs = kind == "no answer"
    with (
        database.hanging() if hangs else nullcontext(),
        attacked(server.port, ask_for_random_pages, clients),
    ):
        until(lambda: " 503 " in server.log.read_text(), "refused")
        for path, reason in (("/", sentence), ("/ready", f"not ready: {kind}: ")) * 3:
            began = time.monotonic()
            status, text = server.get(path)
            assert time.monotonic() - began < 2
            assert reason in text or (status == 200 and not hangs)
            assert server.get("/health", 2)[0] == 200
    until(lambda: server.get()[0] == 200, "served again")
    told = "\n".join(events(server))
    assert (
        ("accounts cannot be read: no answer: " in told)
        == ("accounts can be read again" in told)
        == hangs
    )
    assert len(events(server)) < 10, told


def test_probe_gets_through_while_connections_use_up_all_descriptors(
    start_server: StartServer,
) -> None:
    server = start_server("-n 256")
    with (
        socket.create_connection(("127.0.0.1", server.port), 10) as oldest,
        attacked(server.port, open_connections, 1),
    ):
        assert oldest.recv(1) == b""  # closed
        for _ in range(100):
            assert server.get("/health", 2) == (200, "healthy\n")
            time.sleep(0.02)


@contextmanager
def connections(server: ServerProcess, count: int) -> Iterator[list[socket.socket]]:
    """Give connections that nothing was sent over, and close them."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 1))
            for _ in range(count)
        ]


def assert_serving(server: ServerProcess) -> None:
    """Assert that page, health and readiness are answered, within the time that a probe has."""
    for path in ("/", "/health", "/ready"):
        assert server.get(path, 2)[0] == 200


def exchange(server: ServerProcess, request: bytes) -> bytes:
    """Send bytes, and return all that comes back until the connection is closed, here as soon as anything came."""
    answer = b""
    with (
        socket.create_connection(("127.0.0.1", server.port), 10) as client,
        suppress(ConnectionError),
    ):
        client.sendall(request)
        while received := client.recv(65536):
            if not answer:
                client.shutdown(socket.SHUT_WR)
            answer += received
    return answer


def test_idle_and_slow_connections_stop_nobody(server: ServerProcess) -> None:
    with connections(server, 2000), connections(server, 100) as slow:
        for byte in VALID[:8]:
            for client in slow:
                client.send(bytes([byte]))
            assert_serving(server)
            time.sleep(1)  # a byte a second is what slow means here


def test_client_that_never_reads_stops_nobody(server: ServerProcess) -> None:
    with connections(server, 20) as deaf:
        for client in deaf:
            with suppress(TimeoutError):  # the server reads no more
                client.sendall(VALID.replace(b"Connection: close\r\n", b"") * 1000)
        answered = -1
        while answered != (
            answered := len(server.lines())
        ):  # until what the server sends fills all buffers
            time.sleep(0.5)
        assert 20 < answered < 20 * 1000
        assert_serving(server)


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (
            b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
            "Got more than 8190 bytes when reading",
        ),
        (
            VALID[:-2] + b"X: " + b"a" * 10_000 + b"\r\n\r\n",
            "Got more than 8190 bytes when reading",
        ),
        (VALID[:-2] + b"X: a\r\n" * 1_000 + b"\r\n", "Too many headers received"),
        (b"GARBAGE\r\n\r\n", "Invalid method encountered"),
        (b"GET / HTTP/9.9\r\n\r\n", "Invalid HTTP version"),
        (b"GET / HTTP/1.1\r\n\r\n", "Missing 'Host' header"),
        (VALID[:-2] + b"Content-Length: -1\r\n\r\n", "Invalid character in Content-Length"),
        (
            VALID[:-2] + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
            "Invalid character in chunk size",
        ),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "Received HTTPS traffic on an HTTP port"),
        (
            VALID[:-2] + b"Content-Encoding: gzip\r\nContent-Length: 9\r\n\r\nmalformed",
            "No request needs a body here.",
        ),
    ],
)
def test_malformed_request_is_refused_with_a_sentence(
    server: ServerProcess, request_: bytes, sentence: str
) -> None:
    head, _, body = exchange(server, request_).decode().partition("\r\n\r\n")
    assert re.match(r"HTTP/1\.[01] 4(00 Bad Request|13 Request Entity Too Large)\r\n", head)
    assert sentence in body
    assert "Traceback" not in body
    assert len(events(server)) == 2, events(server)


def test_large_body_is_not_kept(server: ServerProcess) -> None:
    before = server.memory("VmHWM")  # the peak
    request = b"POST / " + HEAD + b"Content-Length: 100000000\r\n\r\n" + bytes(100_000_000)
    assert exchange(server, request).startswith(b"HTTP/1.1 413 ")
    assert server.memory("VmHWM") < before + 20_000


def test_mutated_requests_are_answered_and_never_break_the_server(server: ServerProcess) -> None:
    chance = random.Random(20261122)
    for _ in range(1000):
        request = bytearray(VALID)
        for _ in range(chance.randint(1, 6)):
            place = chance.randrange(len(request))
            request[place : place + chance.randint(0, 3)] = chance.randbytes(chance.randint(0, 4))
        answer = exchange(server, bytes(request) + VALID)
        assert re.match(rb"HTTP/1\.[01] (200|400|404|405|413|417) ", answer), (request, answer)
        assert b"Traceback" not in answer, request
    assert_serving(server)
    assert "Traceback" not in server.log.read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_two_hundred_faults_leave_nothing_behind(
    database: DatabaseServer, start_server: StartServer
) -> None:
    server = start_server(DB_TIMEOUT="0.1")

    def statuses() -> set[int]:
        with ThreadPoolExecutor() as threads:
            return {
                status
                for status, _ in threads.map(server.get, [f"/?after={after}" for after in range(6)])
            }

    def cause_faults() -> tuple[int, int]:
        """Cause a hundred faults; return how many files are open, and the memory in KiB."""
        for round_ in range(100):
            if round_ % 2:  # new connections are made while nothing answers
                for connection in database.connections():
                    with suppress(MySQLError):
                        database.sql(f"KILL {connection}")
            with database.hanging():
                assert statuses() <= {200, 503}
            until(lambda: statuses() == {200}, "recovered")
        return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir())), server.memory()

    files, kibibytes = cause_faults()
    files_now, kibibytes_now = cause_faults()
    assert files_now <= files + 4
    assert kibibytes_now <= kibibytes + 16_384  # a leaked connection a fault would be more
    assert len(database.connections()) <= 4
    assert "Traceback" not in server.log.read_text()
    assert "never retrieved" not in server.log.read_text()
    server.process.terminate()
    assert server.process.wait(10) == 0
