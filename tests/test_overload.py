"""Overload, bad input and two hundred faults: the server goes on serving, and keeps nothing of them."""

import asyncio
import contextlib
import random
import re
import resource
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.conftest import Server, Sql, until
from tests.local import Database

VALID = b"GET /?after=1 HTTP/1.1\r\nHost: localhost\r\nAccept: text/html\r\nConnection: close\r\n\r\n"


@pytest.fixture(autouse=True)
def descriptors() -> Iterator[None]:
    """Start the server with the few descriptors that the engine gives it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@asynccontextmanager
async def connections(server: Server, count: int) -> AsyncIterator[list[asyncio.StreamWriter]]:
    """Give connections that nothing was sent over, and close them."""
    opened = [(await asyncio.open_connection("127.0.0.1", server.port))[1] for _ in range(count)]
    try:
        yield opened
    finally:
        for writer in opened:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for writer in opened), return_exceptions=True)


async def assert_serving(server: Server) -> None:
    """Assert that page, health and readiness are answered, within the time that a probe has."""
    for path in ("/", "/health", "/ready"):
        assert (await asyncio.to_thread(server.get, path, 3))[0] == 200


def exchange(server: Server, request: bytes) -> bytes:
    """Send bytes, and return all that comes back until the connection is closed, here as soon as anything came."""
    answer = b""
    with socket.create_connection(("127.0.0.1", server.port), 10) as client, contextlib.suppress(ConnectionError):
        client.sendall(request)
        while received := client.recv(65536):
            if not answer:
                client.shutdown(socket.SHUT_WR)
            answer += received
    return answer


async def test_idle_and_slow_connections_stop_nobody(server: Server) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))  # of the test alone: the server runs already
    async with connections(server, 2000), connections(server, 100) as slow:
        for byte in VALID[:8]:
            for writer in slow:
                writer.write(bytes([byte]))
            await assert_serving(server)
            await asyncio.sleep(1)  # a byte a second is what slow means here


def settled(server: Server) -> int:
    """Wait until the log grows no more; return how many lines it has."""
    lines = -1
    while lines != (lines := len(server.lines())):
        time.sleep(0.5)
    return lines


async def test_client_that_never_reads_stops_nobody(server: Server) -> None:
    async with connections(server, 20) as deaf:
        for writer in deaf:
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(VALID.replace(b"Connection: close\r\n", b"") * 1000)
        answered = await asyncio.to_thread(settled, server)  # what the server sends fills all buffers
        assert 20 < answered < 20 * 1000
        await assert_serving(server)


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", "Got more than 8190 bytes when reading"),
        (VALID[:-2] + b"X: " + b"a" * 10_000 + b"\r\n\r\n", "Got more than 8190 bytes when reading"),
        (VALID[:-2] + b"X: a\r\n" * 1_000 + b"\r\n", "Too many headers received"),
        (b"GARBAGE\r\n\r\n", "Invalid method encountered"),
        (b"GET / HTTP/9.9\r\n\r\n", "Invalid HTTP version"),
        (b"GET / HTTP/1.1\r\n\r\n", "Missing 'Host' header"),
        (VALID[:-2] + b"Content-Length: -1\r\n\r\n", "Invalid character in Content-Length"),
        (VALID[:-2] + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", "Invalid character in chunk size"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "Received HTTPS traffic on an HTTP port"),
    ],
)
def test_malformed_request_is_refused_with_a_sentence(server: Server, request_: bytes, sentence: str) -> None:
    head, _, body = exchange(server, request_).decode().partition("\r\n\r\n")
    assert re.match(r"HTTP/1\.[01] 400 Bad Request\r\n", head)
    assert "Server: cct" in head
    assert sentence in body
    assert "Traceback" not in body


async def test_large_body_is_not_kept(server: Server) -> None:
    before = memory(server, "VmHWM")  # the peak
    head = b"POST /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 100000000\r\n\r\n"
    answer = await asyncio.to_thread(exchange, server, head + bytes(100_000_000))
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert memory(server, "VmHWM") < before + 20_000
    await assert_serving(server)


async def test_mutated_requests_are_answered_and_never_break_the_server(server: Server) -> None:
    chance = random.Random(20261122)
    for _ in range(1000):
        request = bytearray(VALID)
        for _ in range(chance.randint(1, 6)):
            place = chance.randrange(len(request))
            request[place : place + chance.randint(0, 3)] = chance.randbytes(chance.randint(0, 4))
        answer = await asyncio.to_thread(exchange, server, bytes(request) + VALID)
        assert re.match(rb"HTTP/1\.[01] (200|400|404|405|417) ", answer), (request, answer)
        assert b"Traceback" not in answer, request
    await assert_serving(server)
    assert "Traceback" not in server.log.read_text()


def memory(server: Server, which: str = "VmRSS") -> int:
    """Return the resident memory of the server in KiB."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.search(rf"{which}:\s+(\d+)", status)[1])  # type: ignore[index]


def open_files(server: Server) -> int:
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_two_hundred_faults_leave_nothing_behind(database: Database, sql: Sql, tmp_path: Path) -> None:
    server = Server(database.env("app") | {"DB_TIMEOUT": "0.1"}, tmp_path / "log")

    async def statuses() -> set[int]:
        paths = [f"/?after={after}" for after in range(6)]
        return {status for status, _ in await asyncio.gather(*(asyncio.to_thread(server.get, path) for path in paths))}

    async def recovered() -> bool:
        return await statuses() == {200}

    async def fault(round_: int) -> None:
        assert database.process
        if round_ % 2:  # new connections are made while nothing answers
            for (connection,) in await sql("SELECT id FROM information_schema.processlist WHERE user = 'app'"):
                with contextlib.suppress(Exception):
                    await sql(f"KILL {connection}")
        database.process.send_signal(signal.SIGSTOP)
        try:
            assert await statuses() <= {200, 503}
        finally:
            database.process.send_signal(signal.SIGCONT)
        await until(recovered)

    try:
        for round_ in range(20):
            await fault(round_)
        files, kibibytes = open_files(server), memory(server)
        for round_ in range(200):
            await fault(round_)
        assert open_files(server) <= files + 4
        assert memory(server) <= kibibytes + 16_384  # a leaked connection a fault would be more
        ((connected,),) = await sql("SELECT COUNT(*) FROM information_schema.processlist WHERE user = 'app'")
        assert connected <= 4
        assert "Traceback" not in server.log.read_text()
        assert "never retrieved" not in server.log.read_text()
    finally:
        server.process.terminate()
        assert server.process.wait(10) == 0
