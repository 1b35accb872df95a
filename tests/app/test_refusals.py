"""Requests that are refused, each with a sentence."""

import random
import re
import socket
from contextlib import suppress

import pytest

from tests.app.attacks import HEAD, LAST_PAGE, PAGE
from tests.app.conftest import HTML, Client, MakeClient, ServerProcess, fetch
from tools.private_database import PrivateDatabase

NOT_KNOWN = "The server is not known by this name: see ALLOWED_HOSTS.\n"


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


# Paths, methods, and the way back


async def test_other_path_or_method_is_refused(client: Client) -> None:
    assert await fetch(client, "/nothing", 404) == "404: Not Found\n"
    async with client.delete("/") as response:
        assert response.status == 405
        assert response.headers["Allow"] == "GET,HEAD"


@pytest.mark.parametrize(
    ("path", "status", "home"),
    [("/nothing", 404, "./"), ("/a/b/c", 404, "../../"), ("/?after=x", 400, "./")],
)
async def test_browser_is_led_back_from_an_error(
    client: Client, path: str, status: int, home: str
) -> None:
    """The link is relative: a proxy may serve the page below a path of its own."""
    page = await fetch(client, path, status, accept=HTML)
    assert f'<a href="{home}">Back to the accounts</a>' in page
    assert client.make_url(path).join(client.make_url(home).relative()).path == "/"
    assert f'href="{home.removeprefix("./")}page/page.css"' in page.replace('"./', '"')


# Host names


ALLOWED = ["", "127.0.0.1", "127.0.0.1:5000", "10.0.0.7", "[::1]", "[::1]:80"]
ALLOWED += ["localhost", "localhost:80", "localhost.", "LOCALHOST.:80", "Localhost"]
ALLOWED += ["example.org", "example.org.", "EXAMPLE.ORG:80", "CCT.example.org:80"]
FOREIGN = ["evil.example", "evil.example:80", "evil.example.", "localhost.evil.example"]
FOREIGN += ["127.0.0.1.evil.example", "example.org.evil.example", "[::1", "[evil.example]"]
FOREIGN += ["::::", "[", "]", ".", ":", "%", "localhost..", "example.org:80:80"]


@pytest.fixture
async def named_client(make_client: MakeClient, database: PrivateDatabase) -> Client:
    """Return a client of a server with two allowed names."""
    names = {"ALLOWED_HOSTS": "example.org, cct.example.org"}
    return await make_client(database.env("app") | names)


async def test_allowed_host_is_answered(named_client: Client) -> None:
    for host in ALLOWED:
        await fetch(named_client, "/health", 200, host=host)


async def test_other_host_is_refused_with_a_sentence(named_client: Client) -> None:
    for host in FOREIGN:
        for path in ("/", "/health", "/page/page.css", "/make-unhealthy"):
            assert await fetch(named_client, path, 421, host=host) == NOT_KNOWN
    assert await fetch(named_client, "/health") == "healthy\n"


@pytest.mark.parametrize("host", ["evil.example", "[::1", ""])
async def test_any_host_is_answered_by_default(client: Client, host: str) -> None:
    await fetch(client, "/", 200, host=host)


# Cookies: other programs on localhost set some for all ports


def cookies(count: int, size: int) -> str:
    return "; ".join(f"name{number}={'x' * size}" for number in range(count))


def test_cookies_of_other_programs_are_no_problem(server: ServerProcess) -> None:
    for count in (3, 5):
        assert server.get("/", cookie=cookies(count, 3000))[0] == 200


def test_too_many_cookies_are_refused_with_a_sentence(server: ServerProcess) -> None:
    sentence = "The browser sends too many cookies: delete the cookies of this address."
    assert server.get("/", cookie=cookies(6, 3000)) == (431, f"{sentence}\n")
    status, page = server.get("/", cookie=cookies(10, 3000), accept=HTML)
    assert status == 431
    assert f"<h1>{sentence}</h1>" in page


# Bodies


async def test_body_is_refused_with_a_sentence(client: Client) -> None:
    async with client.post("/make-unhealthy", data=b"x") as response:
        assert response.status == 413
        assert await response.text() == "No request needs a body here.\n"
    assert await fetch(client, "/health") == "healthy\n"


def test_body_that_never_comes_is_refused_at_once(server: ServerProcess) -> None:
    answer = exchange(server, b"POST / " + HEAD + b"Content-Length: 9\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert answer.endswith(b"\r\n\r\nNo request needs a body here.\n")


# No requests at all


def test_malformed_request_is_refused_with_a_sentence(server: ServerProcess) -> None:
    head = PAGE[:-2]
    requests = [
        (b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", "Got more than 8190 bytes"),
        (head + b"X: " + b"a" * 40_000 + b"\r\n\r\n", "Got more than 32768 bytes"),
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
    server.assert_serving()


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
    assert "Unhandled exception" not in server.log.read_text()
