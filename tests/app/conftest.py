"""Fixtures of the app's tests: a database with accounts, a client, the server as a process."""

import os
import resource
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient
from pytest_aiohttp import AiohttpClient

import seed
from server import make_app
from settings import Settings
from tools import ROOT
from tools.private_database import PrivateDatabase, private_database, run_in_thread
from tools.waiting import free_port, get, until

Client = TestClient[Any, Any]
MakeClient = Callable[..., Awaitable[Client]]
StartServer = Callable[..., "ServerProcess"]

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

JSON = "application/json"
HTML = "text/html"
FEW_DESCRIPTORS = "-S -n 1024"  # the server may raise this limit, as in a container
SERVER = (sys.executable, f"{ROOT}/server.py")


def server_with(**constants: float | str) -> tuple[str, ...]:
    """Return the command that starts a server with other constants than those of server.py."""
    changes = "".join(f"server.{name} = {value!r}; " for name, value in constants.items())
    return (sys.executable, "-c", f"import server; {changes}server.main()")


class ServerProcess:
    """A running server. Its log is a file.

    `limit` is an argument of ulimit. `program` is the command that starts the server.
    """

    def __init__(
        self,
        settings: dict[str, str],
        log: Path,
        limit: str = FEW_DESCRIPTORS,
        program: tuple[str, ...] = SERVER,
    ) -> None:
        self.port = int(settings.get("PORT") or free_port())
        self.log = log
        self.command = ("sh", "-c", f'ulimit {limit}; exec "$@"', "sh", *program)
        self.env = os.environ | {"HOST": "127.0.0.1", "PORT": str(self.port)} | settings
        self.start()

    def start(self) -> None:
        """Start the server with an empty log."""
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self.command, env=self.env, cwd=ROOT, stdout=log, stderr=log
            )

    def kill(self) -> None:
        """Kill the server, and wait for its end."""
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        """Kill the server, and start it again on the same port."""
        self.kill()
        self.start()
        self.wait_for("listening on")

    def wait_for(self, text: str) -> None:
        """Wait until the log contains a text."""
        until(lambda: text in self.log.read_text(), f"in the log: {text}")

    def get(self, path: str = "/", timeout: float = 10, **headers: str) -> tuple[int, str]:
        """Return the status and text of an answer."""
        return get(self.port, path, timeout, **headers)

    def lines(self) -> list[str]:
        """Return the complete lines of the log without their times."""
        complete, _, _ = self.log.read_text().rpartition("\n")
        return [line.partition(" UTC ")[2] or line for line in complete.splitlines()]

    def assert_serving(self) -> None:
        """Assert that the page, /health and /ready answer with 200 within 2 s."""
        for path in ("/", "/health", "/ready"):
            assert self.get(path, 2)[0] == 200

    def probe(self) -> None:
        """Ask for the health as the engine does."""
        self.get("/health", user_agent="cct-probe")

    def peak_memory(self) -> int:
        """Return the peak of the resident memory in KiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0])

    def open_files(self) -> int:
        """Return how many files and connections the server has open."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))


async def fetch(
    client: Client, path: str, status: int = 200, method: str = "GET", **headers: str
) -> str:
    """Return the text of an answer; assert its status. In `headers`, user_agent is User-Agent."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with client.request(method, path, headers=named, allow_redirects=False) as response:
        text = await response.text()
    assert response.status == status, text
    return text


@asynccontextmanager
async def locked_table(database: PrivateDatabase) -> AsyncIterator[None]:
    """Lock the table until the end of the context: queries begin, but wait."""
    async with database.cursor() as cursor:
        await cursor.execute("LOCK TABLES cct.accounts WRITE")
        yield
        await cursor.execute("UNLOCK TABLES")


def queries(database: PrivateDatabase) -> set[int]:
    """Return the ids of the connections whose queries wait for the table."""
    return database.connections(state="Waiting%")


def wait_for_queries(database: PrivateDatabase, count: int) -> None:
    """Wait until `count` queries wait for the table."""
    until(lambda: len(queries(database)) == count, f"{count} queries")


@pytest.fixture(scope="session", autouse=True)
def many_descriptors() -> None:
    """Let the tests and their attackers open many connections."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))


@pytest.fixture(scope="session")
def shared_database() -> Iterator[PrivateDatabase]:
    """Yield the database of all tests of a worker."""
    with private_database() as database:
        yield database


@pytest.fixture
def empty_database(shared_database: PrivateDatabase) -> PrivateDatabase:
    """Return a database without the table."""
    shared_database.sql("DROP TABLE IF EXISTS cct.accounts")
    return shared_database


@pytest.fixture
def database(empty_database: PrivateDatabase) -> PrivateDatabase:
    """Return a database with 120 accounts: two full pages and a part of a third."""
    settings = Settings(empty_database.env("seeder") | {"SEED_ACCOUNTS": "120"})
    run_in_thread(seed.seed(settings))
    return empty_database


@pytest.fixture
def make_client(
    shared_database: PrivateDatabase, aiohttp_client: AiohttpClient, monkeypatch: pytest.MonkeyPatch
) -> MakeClient:
    """Return a function that starts a healthy app with settings, and returns its client."""

    async def make(**settings: str) -> Client:
        monkeypatch.setattr("server.unhealthy_reason", "")
        monkeypatch.setattr("server.failed_probes", 0)
        monkeypatch.setattr("server.last_probe", None)
        monkeypatch.setattr("server.log_lines", [])
        env = shared_database.env("app") | settings
        return await aiohttp_client(make_app(Settings(env)))

    return make


@pytest.fixture
async def client(database: PrivateDatabase, make_client: MakeClient) -> Client:
    """Return a client of an app with the default settings."""
    return await make_client()


@pytest.fixture
def start_server(database: PrivateDatabase, tmp_path: Path) -> Iterator[StartServer]:
    """Yield a function that starts a server with settings. Stop the servers after the test."""
    with ExitStack() as servers:

        def start(
            limit: str = FEW_DESCRIPTORS,
            program: tuple[str, ...] = SERVER,
            **settings: str,
        ) -> ServerProcess:
            settings = database.env("app") | settings
            server = ServerProcess(settings, tmp_path / "log", limit, program)
            servers.callback(server.kill)
            server.wait_for("listening on")
            return server

        yield start


@pytest.fixture
def server(start_server: StartServer) -> ServerProcess:
    return start_server()
