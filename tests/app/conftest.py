"""What the tests share: a private database, the accounts in it, a client of the server, and the server as a process."""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient
from pytest_aiohttp import AiohttpClient

import seed
from server import make_app
from settings import Settings
from tests.database import DatabaseServer, private_database
from tests.helpers import ROOT, free_port, get, until

Client = TestClient[Any, Any]
MakeClient = Callable[..., Awaitable[Client]]
Report = Callable[[str], None]
StartServer = Callable[..., "ServerProcess"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List what was skipped, and what it needs."""
    reports = terminalreporter.getreports("skipped")
    skipped = Counter(
        (str(report.longrepr[2]), report.nodeid.partition("::")[0]) for report in reports
    )
    for (reason, file), count in sorted(skipped.items()):
        terminalreporter.line(f"{count} of {file}: {reason}")


class ServerProcess:
    """A server.py that runs, with its log in a file, and its number of descriptors limited by ulimit."""

    def __init__(self, settings: dict[str, str], log: Path, descriptors: str) -> None:
        self.port = int(settings.get("PORT") or free_port())
        self.log = log
        command = [
            "sh",
            "-c",
            f'ulimit {descriptors}; exec "$@"',
            "sh",
            sys.executable,
            f"{ROOT}/server.py",
        ]
        env = os.environ | {"HOST": "127.0.0.1", "PORT": str(self.port)} | settings
        with log.open("wb") as file:
            self.process = subprocess.Popen(command, env=env, stdout=file, stderr=file)
        self.wait_for("listening on")

    def wait_for(self, text: str) -> None:
        until(lambda: text in self.log.read_text(), f"in the log: {text}", 10)

    def get(self, path: str = "/", timeout: float = 10, **headers: str) -> tuple[int, str]:
        return get(self.port, path, timeout, **headers)

    def lines(self) -> list[str]:
        """Return the lines of the log without their times."""
        return [line.partition(" UTC ")[2] or line for line in self.log.read_text().splitlines()]

    def memory(self, which: str = "VmRSS") -> int:
        """Return the resident memory in KiB, the peak as VmHWM."""
        return int(
            Path(f"/proc/{self.process.pid}/status")
            .read_text()
            .partition(f"{which}:")[2]
            .split()[0]
        )

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Report:
    """Give a function that prints a line although pytest captures what tests print."""

    def show(line: str) -> None:
        with capsys.disabled():
            print(f"\n{line}", end="", flush=True)

    return show


@pytest.fixture(scope="session")
def shared_database() -> Iterator[DatabaseServer]:
    with private_database() as database:
        yield database


@pytest.fixture
def empty_database(shared_database: DatabaseServer) -> DatabaseServer:
    """Give a database without the table."""
    shared_database.sql("DROP TABLE IF EXISTS cct.accounts")
    return shared_database


@pytest.fixture
async def database(empty_database: DatabaseServer) -> DatabaseServer:
    """Give a database with 120 accounts, two full pages and a part of a third."""
    await seed.seed(Settings.read(empty_database.env("seeder") | {"SEED_ACCOUNTS": "120"}))
    return empty_database


@pytest.fixture
def make_client(aiohttp_client: AiohttpClient, monkeypatch: pytest.MonkeyPatch) -> MakeClient:
    """Give a function that starts the server with settings, healthy, and returns a client of it."""

    async def make(settings: dict[str, str]) -> Client:
        for name, value in (("unhealthy", ""), ("failed_probes", 0), ("stopping", False)):
            monkeypatch.setattr(f"server.{name}", value)
        return await aiohttp_client(make_app(Settings.read(settings)))

    return make


@pytest.fixture
async def client(make_client: MakeClient, database: DatabaseServer) -> Client:
    return await make_client(database.env("app"))


@pytest.fixture
def start_server(database: DatabaseServer, tmp_path: Path) -> Iterator[StartServer]:
    """Give a function that starts server.py, as few descriptors as the engine gives it, and ends it after the test."""
    with ExitStack() as servers:

        def start(descriptors: str = "-S -n 1024", **settings: str) -> ServerProcess:
            server = ServerProcess(database.env("app") | settings, tmp_path / "log", descriptors)
            servers.callback(server.stop)
            return server

        yield start


@pytest.fixture
def server(start_server: StartServer) -> ServerProcess:
    return start_server()
