"""server.py and probe.py as processes: start, log, signals, idle connections, exit codes."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from http.client import HTTPConnection
from pathlib import Path

from tests.app.conftest import (
    JSON,
    SERVER,
    ServerProcess,
    StartServer,
    locked_table,
    server_with,
    wait_for_queries,
)
from tools import ROOT
from tools.private_database import PrivateDatabase
from tools.waiting import until

HALF_A_REQUEST = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
REQUEST = HALF_A_REQUEST + b"\r\n"


def run(program: str, settings: dict[str, str]) -> tuple[int, str]:
    """Run a program that ends by itself; return its exit code and its output."""
    command = [sys.executable, f"{ROOT}/{program}"]
    done = subprocess.run(
        command, env=os.environ | settings, capture_output=True, check=False, text=True, timeout=20
    )
    return done.returncode, done.stdout + done.stderr


# Start


def test_bad_setting_stops_the_start_with_one_line() -> None:
    sentence = "DB_USER must name the database user.\n"
    assert run("server.py", {"DB_USER": ""}) == (1, sentence)


def test_used_port_stops_the_start_with_one_line(server: ServerProcess) -> None:
    code, output = run("server.py", server.env)
    assert code == 1
    sentence = rf"Cannot listen on 127\.0\.0\.1:{server.port}: Address already in use.*\."
    assert re.fullmatch(sentence, output.splitlines()[-1])


# The log


def test_log_tells_the_story(server: ServerProcess) -> None:
    """Successful probes, and what an open page asks for, are not logged. Long paths are cut."""
    for path in ("/health", "/", "/ready", "/state", "/page/page.css"):
        assert server.get(path)[0] == 200
    assert server.get("/?after=%1b[31mx")[0] == 400
    assert server.get("/page/nothing")[0] == 404
    assert server.get("/" + "x" * 5000)[0] == 404
    assert server.get("/make-unhealthy")[0] == 200
    assert server.get("/health")[0] == 503
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(10) == 0
    story = [re.sub(r"\d\.\d{4} s$", "TIME", line) for line in server.lines()]
    assert story[0].endswith(" starts")
    assert story[1:] == [
        f"listening on 127.0.0.1:{server.port}",
        "127.0.0.1 GET '/' 200 TIME",
        "127.0.0.1 GET '/?after=%1b[31mx' 400 TIME",
        "127.0.0.1 GET '/page/nothing' 404 TIME",
        f"127.0.0.1 GET '/{'x' * 199}' 404 TIME",
        "made unhealthy by GET /make-unhealthy from 127.0.0.1",
        "127.0.0.1 GET '/make-unhealthy' 200 TIME",
        "127.0.0.1 GET '/health' 503 TIME",
        "stopping",
        "stopped",
    ]


def test_log_that_cannot_be_written_fails_no_request(
    database: PrivateDatabase, tmp_path: Path
) -> None:
    """As on a full disk. SIGTERM still ends the server, with exit code 0."""
    program = ("sh", "-c", 'exec "$@" >/dev/full', "sh", *SERVER)
    server = ServerProcess(database.env("app"), tmp_path / "errors", program=program)
    try:
        until(lambda: server.get()[0] == 200, "up", 10)
        end = time.monotonic() + 1  # the log is written four times a second
        while time.monotonic() < end:
            assert server.get()[0] == 200
        server.process.terminate()
        assert server.process.wait(5) == 0
        assert server.log.read_text() == ""
    finally:
        server.kill()


# Stop


async def test_sigterm_lets_the_request_in_flight_finish(
    start_server: StartServer, database: PrivateDatabase
) -> None:
    server = start_server(DB_TIMEOUT="30")
    async with locked_table(database):
        request = asyncio.create_task(asyncio.to_thread(server.get))
        await asyncio.to_thread(wait_for_queries, database, 1)
        server.process.terminate()
        await asyncio.to_thread(server.wait_for, "stopping")
        server.process.terminate()  # a second signal changes nothing
        await asyncio.sleep(0.5)  # a server that does not wait would cut the request off now
    status, page = await request
    assert status == 200
    assert page.endswith("</html>\n")
    assert server.process.wait(5) == 0


def test_drain_refuses_readiness_but_serves(start_server: StartServer) -> None:
    """Each answer closes its connection: the client's next request goes to another replica."""
    server = start_server(DRAIN="2")
    began = time.monotonic()
    server.process.terminate()
    server.wait_for("stopping")
    assert server.get("/ready") == (503, "stopping\n")
    assert server.get("/health") == (200, "healthy\n")
    client = HTTPConnection("127.0.0.1", server.port)
    client.request("GET", "/")
    answer = client.getresponse()
    assert (answer.status, answer.will_close) == (200, True)
    client.close()
    assert server.process.wait(10) == 0
    assert time.monotonic() - began >= 2


# Idle connections


def test_idle_connection_is_closed(start_server: StartServer) -> None:
    """KEEP_ALIVE is 1 s here, instead of 120 s."""
    server = start_server(program=server_with(KEEP_ALIVE=1))
    for sent in (b"", HALF_A_REQUEST, REQUEST, REQUEST + HALF_A_REQUEST):
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
            client.sendall(sent)
            began = time.monotonic()
            answer = b""
            while received := client.recv(4096):
                answer += received
        assert answer.count(b"HTTP/1.1 200 OK") == sent.count(REQUEST)
        assert time.monotonic() > began + 0.5


# The probe


def test_probe_tells_the_health(server: ServerProcess) -> None:
    settings = {"PORT": str(server.port)}
    assert run("probe.py", settings) == (0, "healthy\n")
    _, unhealthy = server.get("/make-unhealthy")
    assert run("probe.py", settings) == (1, unhealthy)
    _, page = server.get(accept=JSON)
    assert '"failed_probes": 1,' in page
    server.kill()
    code, output = run("probe.py", settings)
    assert code == 1
    assert output.startswith("no answer: ")
