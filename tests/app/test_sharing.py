"""Requests that wait for the same page share one query. No page is older than its request."""

import asyncio
import time
from http.client import HTTPConnection

import aiohttp
import pytest

from server import PAGE_SIZE, POOL_SIZE, QUERY
from tests.app.conftest import (
    HTML,
    JSON,
    ServerProcess,
    StartServer,
    locked_table,
    queries,
    wait_for_queries,
)
from tools.private_database import PrivateDatabase
from tools.waiting import until


@pytest.fixture
def server(start_server: StartServer) -> ServerProcess:
    """Start a server whose queries may wait long, since the tests hold the table locked."""
    return start_server(DB_TIMEOUT="30")


def ask(server: ServerProcess, count: int, accept: str = HTML) -> list[HTTPConnection]:
    """Ask for the first page with many clients; return them when their requests have arrived."""
    clients = [connect(server) for _ in range(count)]
    for client in clients:
        client.request("GET", "/", headers={"Accept": accept})
    connect(server).close()  # the server has read the requests that were sent before
    return clients


def connect(server: ServerProcess) -> HTTPConnection:
    """Return a client that the server has accepted."""
    client = HTTPConnection("127.0.0.1", server.port, timeout=10)
    client.request("GET", "/health")
    client.getresponse().read()
    return client


def answers(clients: list[HTTPConnection]) -> list[int]:
    """Return the status of each client's answer; raise HTTPException if an answer is cut off."""
    statuses = []
    for client in clients:
        response = client.getresponse()
        response.read()
        statuses.append(response.status)
        client.close()
    return statuses


def count_queries(database: PrivateDatabase) -> int:
    """Return how many queries have begun since the database started."""
    ((_, count),) = database.sql("SHOW GLOBAL STATUS LIKE 'Com_select'")
    return int(count)


async def test_hundred_requests_at_once_share_one_query(
    server: ServerProcess, database: PrivateDatabase
) -> None:
    """Two clients leave: the first one of all, and the first one that shares."""
    async with locked_table(database):
        early = []
        for number in range(1, POOL_SIZE + 1):  # as many queries as there may be at once
            early += ask(server, 1)
            wait_for_queries(database, number)
        late = ask(server, 50, HTML) + ask(server, 51, JSON)
        for client in (early.pop(0), late.pop(0)):
            client.close()
        connect(server).close()  # the server has noticed
        before = count_queries(database)
    assert answers(early + late) == [200] * (POOL_SIZE + 99)
    assert count_queries(database) == before + 1


async def test_page_is_never_older_than_its_request(
    server: ServerProcess, database: PrivateDatabase
) -> None:
    """Each of eight clients changes an account and then reads its change, fifty times."""

    async def change_and_read(session: aiohttp.ClientSession, account: int) -> None:
        change = "UPDATE cct.accounts SET name = %s WHERE id = %s"
        async with database.cursor() as cursor:
            for turn in range(50):
                await cursor.execute(change, (str(turn), account))
                async with session.get("/", headers={"Accept": JSON}) as response:
                    page = await response.json()
                assert page["accounts"][account - 1]["name"] == str(turn)

    async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as session:
        clients = [change_and_read(session, account) for account in range(1, 9)]
        await asyncio.gather(*clients)


async def test_open_pages_wait_for_no_query_and_cause_one_a_second(
    server: ServerProcess, database: PrivateDatabase
) -> None:
    before = count_queries(database)
    began = time.monotonic()
    for _ in range(100):
        assert server.get("/state")[0] == 200
    seconds = time.monotonic() - began
    assert count_queries(database) - before <= 1 + seconds

    def has_begun_a_query() -> bool:
        assert server.get("/state", 1)[0] == 200
        return len(queries(database)) > 0

    async with locked_table(database):
        await asyncio.to_thread(until, has_begun_a_query, "a query")
        assert server.get("/state", 1)[0] == 200


@pytest.mark.parametrize("after", [0, 60])
def test_query_is_a_key_range(database: PrivateDatabase, after: int) -> None:
    """A page costs the same at any size of the table."""
    (plan,) = database.sql(f"EXPLAIN FORMAT=TRADITIONAL {QUERY}", after, PAGE_SIZE + 1)
    assert "range" in plan
    assert "PRIMARY" in plan
