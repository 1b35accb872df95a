"""server.py and probe.py as processes: settings, log, signals, exit codes."""

import asyncio
import os
import re
import subprocess
import sys
import time
from http.client import HTTPConnection
from pathlib import Path

import pytest

from settings import Settings
from tests.conftest import ServerProcess, StartServer
from tests.database import DatabaseServer
from tests.helpers import ROOT, until

LOGIN = {"DB_USER": "app", "DB_PASSWORD": "secret"}


@pytest.mark.parametrize(
    ("env", "sentence"),
    [
        ({"PORT": "0"}, "PORT must be a whole number from 1 to 65535, not '0'."),
        ({"DB_PORT": "65536"}, "DB_PORT must be a whole number from 1 to 65535, not '65536'."),
        (
            {"SEED_ACCOUNTS": "-1"},
            "SEED_ACCOUNTS must be a whole number from 0 to 100000000, not '-1'.",
        ),
        ({"DB_TIMEOUT": "nan"}, "DB_TIMEOUT must be a number from 0.1 to 60, not 'nan'."),
        ({"SEED_WAIT": "inf"}, "SEED_WAIT must be a number from 1 to 3600, not 'inf'."),
        ({"DB_TLS": "on"}, "DB_TLS must be required or verify-identity or disabled, not 'on'."),
        ({"DB_USER": ""}, "DB_USER must name the database user."),
        ({"DB_PASSWORD": ""}, "Exactly one of DB_PASSWORD and DB_PASSWORD_FILE must be set."),
        (
            {"DB_PASSWORD_FILE": "/etc/hostname"},
            "Exactly one of DB_PASSWORD and DB_PASSWORD_FILE must be set.",
        ),
        (
            {"DB_PASSWORD": "", "DB_PASSWORD_FILE": "/nowhere"},
            "DB_PASSWORD_FILE cannot be read: [Errno 2] No such file or directory: '/nowhere'.",
        ),
    ],
)
def test_bad_setting_is_named(env: dict[str, str], sentence: str) -> None:
    with pytest.raises(SystemExit) as stop:
        Settings.read(LOGIN | env)
    assert stop.value.code == sentence


def test_empty_setting_is_the_default_and_a_password_file_is_read_each_time(tmp_path: Path) -> None:
    assert Settings.read(LOGIN | {"PORT": "", "DB_TLS": ""}) == Settings.read(LOGIN)
    file = tmp_path / "password"
    file.write_text(" päss word \r\n")
    settings = Settings.read({"DB_USER": "app", "DB_PASSWORD_FILE": str(file)})
    assert settings.current_password() == " päss word ".encode()
    file.write_text("rotated")
    assert settings.current_password() == b"rotated"


def run(program: str, settings: dict[str, str]) -> tuple[int, str]:
    """Run a program that ends by itself; return its exit code and what it said."""
    command = [sys.executable, f"{ROOT}/{program}"]
    done = subprocess.run(
        command, env=os.environ | settings, capture_output=True, check=False, text=True, timeout=20
    )
    return done.returncode, done.stdout + done.stderr


def test_bad_setting_stops_the_start_with_one_line(server: ServerProcess) -> None:
    sentence = "PORT must be a whole number from 1 to 65535, not 'http'.\n"
    assert run("server.py", LOGIN | {"PORT": "http"}) == (1, sentence)
    code, line = run("server.py", LOGIN | {"HOST": "127.0.0.1", "PORT": str(server.port)})
    assert code == 1
    sentence = rf"Cannot listen on 127\.0\.0\.1:{server.port}: Address already in use.*\."
    assert re.fullmatch(sentence, line.splitlines()[-1])


def test_log_tells_the_story(server: ServerProcess) -> None:
    requests = {
        "/": 200,
        "/ready": 200,
        "/?after=%1b[31mx": 400,
        "/make-unhealthy": 200,
        "/health": 503,
    }
    assert server.get("/health")[0] == 200
    for path, status in requests.items():
        assert server.get(path)[0] == status
    server.process.terminate()
    assert server.process.wait(10) == 0
    story = [re.sub(r"\d\.\d{4} s$", "TIME", line) for line in server.lines()]
    assert story[0].endswith(" starts")
    assert story[1:] == [
        f"listening on 127.0.0.1:{server.port}",
        "127.0.0.1 GET '/' 200 TIME",
        "127.0.0.1 GET '/?after=%1b[31mx' 400 TIME",
        "made unhealthy by GET /make-unhealthy from 127.0.0.1",
        "127.0.0.1 GET '/make-unhealthy' 200 TIME",
        "127.0.0.1 GET '/health' 503 TIME",
        "stopping",
        "stopped",
    ]


async def test_sigterm_lets_the_request_in_flight_finish(
    server: ServerProcess, database: DatabaseServer
) -> None:
    async with database.cursor() as cursor:
        await cursor.execute("LOCK TABLES cct.accounts WRITE")
        request = asyncio.create_task(asyncio.to_thread(server.get))
        await asyncio.to_thread(until, lambda: database.connections(state="Waiting%"), "in flight")
        server.process.terminate()
        await asyncio.to_thread(server.wait_for, "stopping")
        server.process.terminate()
        await asyncio.sleep(0.5)  # in which a server that does not wait would cut the request off
        await cursor.execute("UNLOCK TABLES")
    status, page = await request
    assert status == 200
    assert page.endswith("</html>\n")
    assert server.process.wait(5) == 0


def test_drain_refuses_readiness_but_serves(start_server: StartServer) -> None:
    server = start_server(DRAIN="2")
    began = time.monotonic()
    server.process.terminate()
    server.wait_for("stopping")
    assert server.get("/ready") == (503, "stopping\n")
    assert server.get("/health")[0] == 200
    client = HTTPConnection("127.0.0.1", server.port)
    client.request("GET", "/")
    page = client.getresponse()
    assert (page.status, page.will_close) == (
        200,
        True,
    )  # the next request of this client goes to another replica
    assert server.process.wait(10) == 0
    assert time.monotonic() - began >= 2


def test_probe_tells_the_health_and_is_counted(server: ServerProcess) -> None:
    settings = {"PORT": str(server.port)}
    assert run("probe.py", settings) == (0, "healthy\n")
    _, unhealthy = server.get("/make-unhealthy")
    assert run("probe.py", settings) == (1, unhealthy)
    assert '"failed_probes": 1,' in server.get(accept="application/json")[1]
    server.stop()
    code, line = run("probe.py", settings)
    assert (code, line[:11]) == (1, "no answer: ")
