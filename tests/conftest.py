"""What the tests share: a private database, the accounts in it, and a client of the server."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, TypeVar

import asyncmy
import pytest
from aiohttp.test_utils import TestClient
from asyncmy.connection import Connection
from pytest_aiohttp import AiohttpClient

import seed
from server import make_app
from settings import Settings
from tests.database import Database, private_database
from tests.helpers import ROOT, free_port, get, until

Client = TestClient[Any, Any]
MakeClient = Callable[..., Awaitable[Client]]
Root = Callable[[], AbstractAsyncContextManager[Connection]]
Rows = tuple[tuple[Any, ...], ...]
Sql = Callable[..., Awaitable[Rows]]
T = TypeVar("T")


class Server:
    """A server.py that runs, with its log in a file."""

    def __init__(self, settings: dict[str, str], log: Path) -> None:
        self.port = free_port()
        self.log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, ROOT / "server.py"],
                env=os.environ | settings | {"HOST": "127.0.0.1", "PORT": str(self.port)},
                stdout=file,
                stderr=file,
            )
        self.wait_for("listening on")

    def wait_for(self, text: str) -> None:
        """Wait until the log has a text."""
        deadline = time.monotonic() + 10
        while text not in self.log.read_text():
            assert time.monotonic() < deadline, f"no {text!r} in {self.log.read_text()}"
            time.sleep(0.05)

    def get(self, path: str, timeout: float = 10) -> tuple[int, str]:
        """Return the status and the text of an answer."""
        client = HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            client.request("GET", path)
            response = client.getresponse()
            return response.status, response.read().decode()
        finally:
            client.close()

    def lines(self) -> list[str]:
        """Return the lines of the log without their times."""
        return [line.split(" UTC ", 1)[1] for line in self.log.read_text().splitlines()]


@pytest.fixture(scope="session")
def shared_database() -> Iterator[Database]:
    with private_database() as database:
        yield database


@pytest.fixture
def root(shared_database: Database) -> Root:
    """Give a function that logs in to the database as root."""
    arguments = DatabaseSettings.read(shared_database.env("root")).connection()
    return lambda: asyncmy.connect(autocommit=True, **arguments)


@pytest.fixture
def sql(root: Root) -> Sql:
    """Give a function that executes a statement as root and returns its rows."""

    async def execute(statement: str, *parameters: object) -> Rows:
        async with root() as connection, connection.cursor() as cursor:
            await cursor.execute(statement, parameters)
            return tuple(await cursor.fetchall())

    return execute


@pytest.fixture
async def empty_database(shared_database: Database, sql: Sql) -> Database:
    """Give a database without the table."""
    await sql("DROP TABLE IF EXISTS cct.accounts")
    return shared_database


@pytest.fixture
async def database(empty_database: Database) -> Database:
    """Give a database with 120 accounts, two full pages and a part of a third."""
    await seed.seed(seed.SeedSettings.read(empty_database.env("seeder") | {"SEED_ACCOUNTS": "120"}))
    return empty_database


@pytest.fixture
def make_client(aiohttp_client: AiohttpClient, monkeypatch: pytest.MonkeyPatch) -> MakeClient:
    """Give a function that starts the server with settings, its flag up, and returns a client of it."""

    async def make(settings: dict[str, str]) -> Client:
        for name, value in (("healthy", True), ("health", "healthy"), ("failed_probes", 0), ("stopping", False)):
            monkeypatch.setattr(f"server.{name}", value)
        client: Client = await aiohttp_client(make_app(Settings.read(settings)))
        return client

    return make


@pytest.fixture
async def client(make_client: MakeClient, database: Database) -> Client:
    return await make_client(database.env("app"))


@pytest.fixture
def server(database: Database, tmp_path: Path) -> Iterator[Server]:
    server = Server(database.env("app"), tmp_path / "log")
    yield server
    server.process.kill()
    server.process.wait()
