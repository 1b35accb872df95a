"""server.py as a process: its log, its signals, its exit codes."""

import asyncio
import os
import re
import subprocess
import sys
import time

from tests.conftest import ServerProcess, StartServer
from tests.database import DatabaseServer
from tests.helpers import ROOT, until


def run(program: str, settings: dict[str, str]) -> tuple[int, str, str]:
    """Run a program that ends by itself; return its exit code, output and errors."""
    done = subprocess.run(
        [sys.executable, ROOT / program],
        env=os.environ | settings,
        capture_output=True,
        check=False,
        text=True,
        timeout=20,
    )
    return done.returncode, done.stdout, done.stderr


def test_log_tells_the_story(server: ServerProcess) -> None:
    assert server.get("/health")[0] == 200
    assert server.get("/ready")[0] == 200
    assert server.get()[0] == 200
    assert server.get("/?after=%1b[31mx")[0] == 400
    assert server.get("/make-unhealthy")[0] == 200
    assert server.get("/health")[0] == 503
    server.process.terminate()
    assert server.process.wait(10) == 0
    story = [re.sub(r"\d\.\d{4} s$", "TIME", line) for line in server.lines()]
    assert story[1:] == [
        f"listening on 127.0.0.1:{server.port}",
        "127.0.0.1 GET '/' 200 TIME",
        "127.0.0.1 GET '/?after=%1b[31mx' 400 TIME",
        "flag lowered by GET /make-unhealthy from 127.0.0.1",
        "127.0.0.1 GET '/make-unhealthy' 200 TIME",
        "127.0.0.1 GET '/health' 503 TIME",
        "stopping",
        "stopped",
    ]
    assert story[0].endswith(" starts")


async def test_sigterm_lets_the_request_in_flight_finish(server: ServerProcess, database: DatabaseServer) -> None:
    async with database.connect() as connection, connection.cursor() as cursor:
        await cursor.execute("LOCK TABLES cct.accounts WRITE")
        request = asyncio.create_task(asyncio.to_thread(server.get))
        waiting = "SELECT 1 FROM information_schema.processlist WHERE user = 'app' AND state LIKE 'Waiting%%'"
        await asyncio.to_thread(until, lambda: database.sql(waiting), "in flight")
        server.process.terminate()
        await asyncio.to_thread(server.wait_for, "stopping")
        server.process.terminate()
        await asyncio.sleep(0.5)  # in which a server that does not wait would cut the request off
        await cursor.execute("UNLOCK TABLES")
    status, page = await request
    assert status == 200
    assert page.endswith("</html>\n")
    assert server.process.wait(5) == 0
    assert server.lines()[-2].startswith("127.0.0.1 GET '/' 200 ")
    assert server.lines()[-1] == "stopped"


def test_drain_refuses_readiness_but_serves(start_server: StartServer) -> None:
    server = start_server(DRAIN="2")
    assert server.get("/ready")[0] == 200
    began = time.monotonic()
    server.process.terminate()
    server.wait_for("stopping")
    assert server.get("/ready") == (503, "stopping\n")
    assert server.get("/health")[0] == 200
    assert server.get()[0] == 200
    assert server.process.wait(10) == 0
    assert time.monotonic() - began >= 2


def test_probe_tells_the_health_and_counts_where_curl_does_not(server: ServerProcess) -> None:
    assert run("probe.py", {"PORT": str(server.port)}) == (0, "healthy\n", "")
    _, unhealthy = server.get("/make-unhealthy")
    assert server.get("/health", user_agent="curl/8.5.0") == (503, unhealthy)
    assert run("probe.py", {"PORT": str(server.port)}) == (1, unhealthy, "")
    assert '"failed_probes": 1,' in server.get(accept="application/json")[1]
    server.stop()
    code, output, errors = run("probe.py", {"PORT": str(server.port)})
    assert (code, output, errors[:11]) == (1, "", "no answer: ")


def test_taken_port_is_named(server: ServerProcess, database: DatabaseServer) -> None:
    code, _, errors = run("server.py", database.env("app") | {"HOST": "127.0.0.1", "PORT": str(server.port)})
    assert code == 1
    assert re.fullmatch(rf"Cannot listen on 127\.0\.0\.1:{server.port}: Address already in use.*\.\n", errors)


def test_bad_setting_stops_the_start_with_one_line() -> None:
    sentence = "PORT must be a whole number from 1 to 65535, not 'http'.\n"
    assert run("server.py", {"DB_USER": "app", "DB_PASSWORD": "x", "PORT": "http"}) == (1, "", sentence)
