"""Requests that are refused, each with a sentence."""

import re
import socket
from contextlib import suppress

import pytest

from tests.app.attacks import PAGE
from tests.app.conftest import HTML, Client, MakeClient, ServerProcess, fetch

NOT_KNOWN = "The server is not known by this name: see ALLOWED_HOSTS.\n"


# Paths, methods, and the way back


async def test_other_path_or_method_is_refused(client: Client) -> None:
    assert await fetch(client, "/nothing", 404) == "404: Not Found\n"
    assert await fetch(client, "/", 405, "DELETE") == "405: Method Not Allowed\n"


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
    assert f'<link rel="stylesheet" href="{home}page/page.css">' in page


# Host names


ALLOWED = ["", "127.0.0.1:5000", "10.0.0.7", "[::1]", "[::1]:80", "localhost", "LOCALHOST.:80"]
ALLOWED += ["example.org", "example.org.", "EXAMPLE.ORG:80", "CCT.example.org:80"]
FOREIGN = ["evil.example", "evil.example:80", "localhost.evil.example", "127.0.0.1.evil.example"]
FOREIGN += ["example.org.evil.example", "[evil.example]", "[::1", ":", "example.org:80:80"]


async def test_other_host_is_refused_with_a_sentence(make_client: MakeClient) -> None:
    client = await make_client(ALLOWED_HOSTS="example.org, cct.example.org")
    for host in ALLOWED:
        await fetch(client, "/health", host=host)
    for host in FOREIGN:
        for path in ("/", "/page/page.css", "/make-unhealthy"):
            assert await fetch(client, path, 421, host=host) == NOT_KNOWN
    assert await fetch(client, "/health") == "healthy\n"


async def test_any_host_is_answered_by_default(client: Client) -> None:
    await fetch(client, "/", host="evil.example")


# Cookies: other programs on localhost set some for all ports


def cookies(count: int, size: int) -> str:
    return "; ".join(f"name{number}={'x' * size}" for number in range(count))


def test_too_many_cookies_are_refused_with_a_sentence(server: ServerProcess) -> None:
    assert server.get("/", cookie=cookies(5, 3000))[0] == 200
    sentence = "The browser sends too many cookies: delete the cookies of this address."
    assert server.get("/", cookie=cookies(6, 3000)) == (431, f"{sentence}\n")
    status, page = server.get("/", cookie=cookies(10, 3000), accept=HTML)
    assert status == 431
    assert f"<h1>{sentence}</h1>" in page


# Bodies, and no requests at all


async def test_body_is_refused_with_a_sentence(client: Client) -> None:
    async with client.post("/make-unhealthy", data=b"x") as response:
        assert response.status == 413
        assert await response.text() == "No request needs a body here.\n"
    assert await fetch(client, "/health") == "healthy\n"


MALFORMED = {
    b"GARBAGE\r\n\r\n": "Invalid method encountered",
    b"GET / HTTP/1.1\r\n\r\n": "Missing 'Host' header",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03": "Received HTTPS traffic on an HTTP port",
    b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\n": "Got more than 8190 bytes",
    PAGE[:-2] + b"X: " + b"a" * 40_000 + b"\r\n\r\n": "Got more than 32768 bytes",
    PAGE[:-2] + b"X: a\r\n" * 100 + b"\r\n": "Too many headers received",
}


def exchange(server: ServerProcess, request: bytes) -> str:
    """Send bytes, and return the answer. Read until the server closes the connection."""
    answer = b""
    with (
        socket.create_connection(("127.0.0.1", server.port), 10) as client,
        suppress(ConnectionError),
    ):
        client.sendall(request)
        while received := client.recv(65536):
            answer += received
    return answer.decode()


def test_malformed_request_is_refused_with_a_sentence(server: ServerProcess) -> None:
    for request, sentence in MALFORMED.items():
        answer = exchange(server, request)
        assert re.match(r"HTTP/1\.[01] 400 Bad Request\r\n", answer), sentence
        assert sentence in answer
        assert "Traceback" not in answer
    server.assert_serving()
    assert "Unhandled exception" not in server.log.read_text()
