"""Requests that no browser sends: malformed, mutated, or too many at once."""

import random
import re
import socket
from contextlib import suppress

import pytest

from server import MAX_AHEAD
from tests.app.attacks import HEAD, LAST_PAGE, NOTHING, PAGE
from tests.app.conftest import ServerProcess, linux
from tools.waiting import until


def exchange(server: ServerProcess, request: bytes) -> bytes:
    """Send bytes, and return the answer. Read until the server closes the connection.

    The client closes its sending half when the first part of the answer arrives.
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
    """Read `count` pages, and return them."""
    answers = b""
    while answers.count(b"</html>\n") < count:
        received = client.recv(4096)
        assert received, f"closed after {len(answers)} bytes"
        answers += received
    return answers


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
    assert len(server.events()) == 2, server.events()


def test_malformed_body_is_refused_unread(server: ServerProcess) -> None:
    fields = b"Content-Encoding: gzip\r\nContent-Length: 9\r\n\r\n"
    answer = exchange(server, PAGE[:-2] + fields + b"malformed")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert answer.endswith(b"\r\n\r\nNo request needs a body here.\n")
    assert len(server.events()) == 2, server.events()


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
    server.assert_serving()
    assert "Traceback" not in server.log.read_text()


def test_nine_requests_at_once_are_answered(server: ServerProcess) -> None:
    with socket.create_connection(("127.0.0.1", server.port), 10) as client:
        client.sendall(PAGE * (MAX_AHEAD + 1))
        answers = read_pages(client, MAX_AHEAD + 1)
    assert answers.count(b"HTTP/1.1 200 ") == MAX_AHEAD + 1


@pytest.mark.parametrize("count", [MAX_AHEAD + 2, 1000])
def test_more_than_nine_requests_at_once_get_one_429(server: ServerProcess, count: int) -> None:
    """The log has one line for all of them."""
    head, _, body = exchange(server, NOTHING * count).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 429 ")
    assert body == b"Wait for answers before you send more requests.\n"
    until(lambda: " 429 " in server.log.read_text(), "logged")
    assert len(server.lines()) == len(server.events()) + 1
