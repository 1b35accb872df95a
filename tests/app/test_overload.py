"""Overload, bad input and two hundred faults: the server goes on, and keeps nothing of them."""

import random
import re
import resource
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from asyncmy.errors import MySQLError

from server import MAX_AHEAD
from tests.app.attacks import (
    HEAD,
    NOTHING,
    Attack,
    ask_for_random_pages,
    attacked,
    leave_a_backlog,
    open_connections,
    pipeline,
    send_bomb,
    send_without_pause,
)
from tests.app.conftest import ServerProcess, StartServer
from tests.conftest import Report
from tools.private_database import PrivateDatabase
from tools.waiting import until

PAGE = b"GET /?after=1 " + HEAD + b"Accept: text/html\r\n\r\n"
LAST_PAGE = PAGE[:-2] + b"Connection: close\r\n\r\n"
ACCESS = re.compile(r"127\.0\.0\.1 \w+ '.*' \d+ \d+\.\d+ s")
LISTENS = "0A"  # states in the kernel's table of connections
IS_OVER = "06"
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(scope="module", autouse=True)
def many_descriptors() -> None:
    """Let the tests and their attackers open many connections."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))


def events(server: ServerProcess) -> list[str]:
    """Return the lines of the log that are not of the access log."""
    return [line for line in server.lines() if not ACCESS.fullmatch(line)]


def use(server: ServerProcess, seconds: float) -> float:
    """Ask for /health and a page again and again; return the longest time that /health took.

    Raise AssertionError if there is another status than 200.
    """
    slowest = 0.0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.monotonic()
        assert server.get("/health")[0] == 200
        slowest = max(slowest, time.monotonic() - began)
        assert server.get("/")[0] == 200
    return slowest


def assert_serving(server: ServerProcess) -> None:
    """Assert that page, health and readiness are answered, within the time that a probe has."""
    for path in ("/", "/health", "/ready"):
        assert server.get(path, 2)[0] == 200


def exchange(server: ServerProcess, request: bytes) -> bytes:
    """Send bytes, and return all that comes back until the server closes the connection.

    The client sends nothing more as soon as anything has come.
    """
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


def read_pages(client: socket.socket, count: int) -> bytes:
    """Return what comes, until it holds so many pages."""
    answers = b""
    while answers.count(b"</html>\n") < count:
        received = client.recv(4096)
        assert received, f"closed after {len(answers)} bytes"
        answers += received
    return answers


@contextmanager
def connections(
    server: ServerProcess, count: int, buffer: int = 0
) -> Iterator[list[socket.socket]]:
    """Give connections, and close them. `buffer` is for what a client has not read, in bytes."""
    with ExitStack() as stack:
        clients = [stack.enter_context(socket.socket()) for _ in range(count)]
        for client in clients:
            if buffer:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            client.settimeout(10)
            client.connect(("127.0.0.1", server.port))
        yield clients


def unread_bytes(server: ServerProcess) -> list[int]:
    """Return for each connection of the server how much its client has not taken."""
    unread = []
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, queues, *_ = line.split()
        if local.endswith(f":{server.port:04X}") and state not in (LISTENS, IS_OVER):
            unread.append(int(queues.partition(":")[0], 16))
    return unread


def cpu_time(server: ServerProcess) -> float:
    """Return the seconds that the server has computed since its start."""
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])  # as a user, and in the kernel
    return ticks / 100


# Attacks


def use_under_attack(server: ServerProcess, attack: Attack, clients: int) -> float:
    """Use the server during an attack; return the longest time that /health took."""
    lines = len(server.lines())
    with attacked(server.port, attack, clients):
        until(lambda: len(server.lines()) > lines + 20, "under attack")
        return use(server, seconds=2)


def assert_nobody_noticed(server: ServerProcess, report: Report, slowest: float) -> None:
    """Assert that an attack has left no trace but lines of the access log."""
    megabytes = server.memory("VmHWM") / 1024
    report(f"/health within {slowest:.2f} s, {megabytes:.0f} MB")
    assert slowest < 0.5
    assert megabytes < 100
    assert len(events(server)) == 2, events(server)  # it has started, no more


def test_nobody_notices_requests_without_pause(server: ServerProcess, report: Report) -> None:
    slowest = use_under_attack(server, send_without_pause, 1)
    slowest = max(slowest, use_under_attack(server, send_without_pause, 100))
    assert_nobody_noticed(server, report, slowest)


@linux
def test_backlog_goes_with_its_sender(server: ServerProcess, report: Report) -> None:
    """Twenty clients send a million requests, and then no more. None of these is answered."""
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
    """The clients keep their connections. None of them is refused."""
    slowest = use_under_attack(server, ask_for_random_pages, 64)
    slowest = max(slowest, use_under_attack(server, ask_for_random_pages, 1024))
    log = server.log.read_text()
    assert " 429 " not in log
    assert " 503 " not in log
    assert_nobody_noticed(server, report, slowest)


def test_nine_requests_at_once_are_answered(server: ServerProcess) -> None:
    with connections(server, 1) as (client,):
        client.sendall(PAGE * (MAX_AHEAD + 1))
        answers = read_pages(client, MAX_AHEAD + 1)
    assert answers.count(b"HTTP/1.1 200 ") == MAX_AHEAD + 1


@pytest.mark.parametrize("count", [MAX_AHEAD + 2, 1000])
def test_more_requests_at_once_are_refused_together(server: ServerProcess, count: int) -> None:
    """The log has one line for them."""
    head, _, body = exchange(server, NOTHING * count).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 429 ")
    assert body == b"Wait for answers before you send more requests.\n"
    until(lambda: " 429 " in server.log.read_text(), "logged")
    assert len(server.lines()) == len(events(server)) + 1


# Too many pages


def get_in_time(server: ServerProcess, path: str) -> tuple[int, str]:
    """Return status and text of an answer that took less than 2 s."""
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
    lines = events(server)
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
    lines = events(server)
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
            assert_serving(server)
            time.sleep(1)


@linux
def test_clients_that_never_read_are_cut_off(start_server: StartServer) -> None:
    code = "import run, server; run.UNREAD_TIMEOUT = 2; server.main()"
    server = start_server(program=(sys.executable, "-c", code))
    with connections(server, 20, buffer=8192) as deaf:
        for client in deaf:
            client.sendall(PAGE * (MAX_AHEAD + 1))
        until(lambda: sum(unread_bytes(server)) > 20 * 50_000, "full of unread pages")
        assert_serving(server)
        until(lambda: unread_bytes(server) == [], "cut off", 6)


@linux
def test_unread_answer_of_a_closed_connection_is_dropped(start_server: StartServer) -> None:
    """The server has closed the connection, so only the kernel knows its answer."""
    code = "import run, server; run.UNREAD_TIMEOUT = 1; server.main()"
    server = start_server(program=(sys.executable, "-c", code))
    with connections(server, 20, buffer=2048) as deaf:
        for client in deaf:
            client.sendall(LAST_PAGE)
        until(lambda: sum(unread_bytes(server)) > 20 * 5_000, "full of unread pages")
        until(lambda: unread_bytes(server) == [], "dropped", 6)


# Bad input


def test_malformed_request_is_refused_with_a_sentence(server: ServerProcess) -> None:
    long = b"a" * 10_000
    too_long = "Got more than 8190 bytes when reading"
    head = PAGE[:-2]
    requests = [
        (b"GET /" + long + b" HTTP/1.1\r\nHost: x\r\n\r\n", too_long),
        (head + b"X: " + long + b"\r\n\r\n", too_long),
        (head + b"X: a\r\n" * 1_000 + b"\r\n", "Too many headers received"),
        (b"GARBAGE\r\n\r\n", "Invalid method encountered"),
        (b"GET / HTTP/9.9\r\n\r\n", "Invalid HTTP version"),
        (b"GET / HTTP/1.1\r\n\r\n", "Missing 'Host' header"),
        (head + b"Content-Length: -1\r\n\r\n", "Invalid character in Content-Length"),
        (head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", "Invalid character in chunk size"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "Received HTTPS traffic on an HTTP port"),
    ]
    for request, sentence in requests:
        answer = exchange(server, request).decode()
        assert re.match(r"HTTP/1\.[01] 400 Bad Request\r\n", answer), sentence
        assert sentence in answer
        assert "Traceback" not in answer
    assert len(events(server)) == 2, events(server)


def test_malformed_body_is_refused_unread(server: ServerProcess) -> None:
    fields = b"Content-Encoding: gzip\r\nContent-Length: 9\r\n\r\n"
    answer = exchange(server, PAGE[:-2] + fields + b"malformed")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert answer.endswith(b"\r\n\r\nNo request needs a body here.\n")
    assert len(events(server)) == 2, events(server)


@linux
def test_large_body_is_not_kept(server: ServerProcess) -> None:
    before = server.memory("VmHWM")  # the peak
    head = b"POST / " + HEAD + b"Content-Length: 100000000\r\n\r\n"
    assert exchange(server, head + bytes(100_000_000)).startswith(b"HTTP/1.1 413 ")
    assert server.memory("VmHWM") < before + 20_000


def test_mutated_requests_never_break_the_server(server: ServerProcess) -> None:
    """A thousand requests, each with one to six changes. All are answered."""
    chance = random.Random(20261122)
    for _ in range(1000):
        request = bytearray(LAST_PAGE)
        for _ in range(chance.randint(1, 6)):
            place = chance.randrange(len(request))
            end = place + chance.randint(0, 3)
            request[place:end] = chance.randbytes(chance.randint(0, 4))
        answer = exchange(server, bytes(request) + LAST_PAGE)
        assert re.match(rb"HTTP/1\.[01] (200|400|404|405|413|417) ", answer), (request, answer)
        assert b"Traceback" not in answer, request
    assert_serving(server)
    assert "Traceback" not in server.log.read_text()


# Faults


@linux
def test_two_hundred_faults_leave_nothing_behind(
    database: PrivateDatabase, start_server: StartServer
) -> None:
    """A fault is a database that hangs, each second time after all its connections were killed."""
    server = start_server(DB_TIMEOUT="0.1")
    paths = [f"/?after={after}" for after in range(6)]

    def ask_for_pages() -> set[int]:
        """Ask for six pages at once; return the statuses of the answers."""
        with ThreadPoolExecutor() as threads:
            answers = list(threads.map(server.get, paths))
        return {status for status, _ in answers}

    def cause_faults(count: int) -> None:
        """Let the database fail, and recover."""
        for number in range(count):
            if number % 2:  # the server must connect while nothing answers
                kill_connections(database)
            with database.hanging():
                assert ask_for_pages() <= {200, 503}
            until(lambda: ask_for_pages() == {200}, "recovered")

    cause_faults(100)
    files = open_files(server)
    kibibytes = server.memory()
    cause_faults(100)
    assert open_files(server) <= files + 4
    assert server.memory() <= kibibytes + 16_384  # a leaked connection a fault would be more
    assert len(database.connections()) <= 4
    assert "Traceback" not in server.log.read_text()
    assert "never retrieved" not in server.log.read_text()
    server.process.terminate()
    assert server.process.wait(10) == 0


def kill_connections(database: PrivateDatabase) -> None:
    """End all connections of the app to the database."""
    for connection in database.connections():
        with suppress(MySQLError):  # it has ended meanwhile
            database.sql(f"KILL {connection}")


def open_files(server: ServerProcess) -> int:
    """Return how many files and connections the server has open."""
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))
