"""server.py as a process: its log, its signals, its exit codes."""

import asyncio
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.conftest import Root, Server, Sql, until
from tests.local import ROOT, Database


def test_log_tells_the_story(server: Server) -> None:
    assert server.get("/health")[0] == 200
    assert server.get("/ready")[0] == 200
    assert server.get("/")[0] == 200
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


async def test_sigterm_lets_the_request_in_flight_finish(server: Server, root: Root, sql: Sql) -> None:
    async with root() as connection, connection.cursor() as cursor:
        await cursor.execute("LOCK TABLES cct.accounts WRITE")
        request = asyncio.create_task(asyncio.to_thread(server.get, "/"))
        waiting = "SELECT 1 FROM information_schema.processlist WHERE user = 'app' AND state LIKE 'Waiting%%'"
        await until(lambda: sql(waiting))
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


def test_drain_refuses_readiness_but_serves(database: Database, tmp_path: Path) -> None:
    server = Server(database.env("app") | {"DRAIN": "2"}, tmp_path / "log")
    assert server.get("/ready")[0] == 200
    began = time.monotonic()
    server.process.terminate()
    server.wait_for("stopping")
    assert server.get("/ready") == (503, "stopping\n")
    assert server.get("/health")[0] == 200
    assert server.get("/")[0] == 200
    assert server.process.wait(10) == 0
    assert time.monotonic() - began >= 2


def test_taken_port_is_named(database: Database) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        done = run_server(database.env("app") | {"HOST": "127.0.0.1", "PORT": str(port)})
    assert done.returncode == 1
    assert re.fullmatch(rf"Cannot listen on 127\.0\.0\.1:{port}: Address already in use.*\.\n", done.stderr)


def test_bad_setting_stops_the_start_with_one_line() -> None:
    done = run_server({"DB_USER": "app", "DB_PASSWORD": "x", "PORT": "http"})
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "PORT must be a whole number from 1 to 65535, not 'http'.\n"


def run_server(settings: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a server.py that is expected to end by itself."""
    return subprocess.run(
        [sys.executable, ROOT / "server.py"],
        env=os.environ | settings,
        capture_output=True,
        check=False,
        text=True,
        timeout=20,
    )
