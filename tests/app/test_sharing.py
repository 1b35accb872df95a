"""Requests that wait for the same page share one query. No page is older than its request."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http.client import HTTPConnection

import aiohttp
import pytest
from database import POOL_SIZE, QUERY, Database, Page, ReadError

from settings import Settings
from tests.app.conftest import ServerProcess, StartServer
from tools.private_database import PrivateDatabase
from tools.waiting import until

HTML = "text/html"
JSON = "application/json"


@pytest.fixture
def server(start_server: StartServer) -> ServerProcess:
    """Start a server whose queries may wait long, since the tests hold the table locked."""
    return start_server(DB_TIMEOUT="30")


@asynccontextmanager
async def locked_table(database: PrivateDatabase) -> AsyncIterator[None]:
    """Lock the table until the end of the context: queries begin, but wait."""
    async with database.cursor() as cursor:
        await cursor.execute("LOCK TABLES cct.accounts WRITE")
        yield
        await cursor.execute("UNLOCK TABLES")


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


def begin_all_queries(server: ServerProcess, database: PrivateDatabase) -> list[HTTPConnection]:
    """Begin as many queries as there may be at once; return their clients."""
    clients = []
    for number in range(POOL_SIZE):
        clients += ask(server, 1)
        wait_for_queries(database, number + 1)
    return clients


def wait_for_queries(database: PrivateDatabase, count: int) -> None:
    """Wait until `count` queries wait for the table."""
    until(lambda: len(queries(database)) == count, f"{count} queries")


def queries(database: PrivateDatabase) -> set[int]:
    """Return the ids of the connections whose queries wait for the table."""
    return database.connections(state="Waiting%")


def count_queries(database: PrivateDatabase) -> int:
    """Return how many queries have begun since the database started."""
    ((_, count),) = database.sql("SHOW GLOBAL STATUS LIKE 'Com_select'")
    return int(count)


async def test_hundred_requests_at_once_share_one_query(
    server: ServerProcess, database: PrivateDatabase
) -> None:
    async with locked_table(database):
        early = begin_all_queries(server, database)
        late = ask(server, 50, HTML) + ask(server, 50, JSON)
        before = count_queries(database)
    assert answers(early + late) == [200] * (POOL_SIZE + 100)
    assert count_queries(database) == before + 1


async def test_request_never_joins_a_query_that_has_begun(
    server: ServerProcess, database: PrivateDatabase
) -> None:
    async with locked_table(database):
        first = ask(server, 1)
        wait_for_queries(database, 1)
        second = ask(server, 1)
        wait_for_queries(database, 2)
    assert answers(first + second) == [200, 200]


async def test_page_is_never_older_than_its_request(
    server: ServerProcess, database: PrivateDatabase
) -> None:
    """Each of sixteen clients changes an account and then reads its change, 200 times."""

    async def change_and_read(session: aiohttp.ClientSession, account: int) -> None:
        change = "UPDATE cct.accounts SET name = %s WHERE id = %s"
        async with database.cursor() as cursor:
            for turn in range(200):
                await cursor.execute(change, (str(turn), account))
                async with session.get("/", headers={"Accept": JSON}) as response:
                    page = await response.json()
                assert page["accounts"][account - 1]["name"] == str(turn)

    async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as session:
        clients = [change_and_read(session, account) for account in range(1, 17)]
        await asyncio.gather(*clients)


async def test_client_that_disconnects_fails_no_other_request(
    server: ServerProcess, database: PrivateDatabase
) -> None:
    async with locked_table(database):
        early = begin_all_queries(server, database)
        late = ask(server, 3)
        for client in (early.pop(0), late.pop(0)):
            client.close()
        connect(server).close()  # the server has noticed
    assert answers(early + late) == [200] * (POOL_SIZE + 1)


async def test_failed_query_fails_all_who_waited_for_it(
    server: ServerProcess, database: PrivateDatabase
) -> None:
    async with locked_table(database):
        early = begin_all_queries(server, database)
        late = ask(server, 3)

        begun = queries(database)
        database.sql(f"KILL {min(begun)}")  # its place goes to the query of `late`
        (shared,) = until(lambda: queries(database) - begun, "a query for the others")
        database.sql(f"KILL {shared}")

        async with asyncio.timeout(10):  # much less than DB_TIMEOUT
            assert await asyncio.to_thread(answers, late) == [503, 503, 503]
    assert sorted(answers(early)) == [*[200] * (POOL_SIZE - 1), 503]


@pytest.fixture
def one_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a Database one slot. If a read does not release the slot, no other read begins."""
    monkeypatch.setattr("database.POOL_SIZE", 1)


async def cancel_request(reader: Database, turns: int) -> bool:
    """Cancel one of three requests that share a read, after some turns of the loop.

    Return whether the request was still running when it was cancelled. The other two must end:
    with a page, or because their read was cancelled. The next request must get a page. Otherwise
    raise AssertionError.
    """
    requests = [asyncio.create_task(reader.page(0)) for _ in range(3)]
    for _ in range(turns):
        await asyncio.sleep(0)
    was_open = requests[0].cancel()
    results = await asyncio.gather(*requests, return_exceptions=True)
    assert {type(result) for result in results} <= {asyncio.CancelledError, Page}
    assert isinstance(await reader.page(0), Page)
    assert reader.waiting == {}
    return was_open


@pytest.mark.usefixtures("one_slot")
async def test_cancel_while_connecting_leaves_nobody_waiting(database: PrivateDatabase) -> None:
    turns = 0
    was_open = True
    while was_open:
        reader = Database(Settings(database.env("app")))
        was_open = await cancel_request(reader, turns)
        await reader.close()
        turns += 1
    assert turns > 5


@pytest.mark.usefixtures("one_slot")
async def test_cancel_of_a_query_leaves_nobody_waiting(database: PrivateDatabase) -> None:
    reader = Database(Settings(database.env("app")))
    turns = 0
    while await cancel_request(reader, turns):
        turns += 1
    assert turns > 3
    await reader.close()


@pytest.mark.usefixtures("one_slot")
async def test_cancel_of_a_wait_leaves_nobody_waiting(database: PrivateDatabase) -> None:
    reader = Database(Settings(database.env("app")))
    turns = 0
    was_open = True
    while was_open:
        other = asyncio.create_task(reader.page(60))  # has the only slot first
        was_open = await cancel_request(reader, turns)
        assert isinstance(await other, Page)
        turns += 1
    assert turns > 5
    await reader.close()


@pytest.mark.usefixtures("one_slot")
async def test_wait_that_times_out_blocks_no_later_request(database: PrivateDatabase) -> None:
    reader = Database(Settings(database.env("app") | {"DB_TIMEOUT": "1"}))
    async with locked_table(database):
        requests = [reader.page(60), reader.page(0), reader.page(0)]  # the first has the slot
        results = await asyncio.gather(*requests, return_exceptions=True)
    assert [type(result) for result in results] == [ReadError] * 3
    assert isinstance(await reader.page(0), Page)
    await reader.close()


@pytest.mark.parametrize("after", [0, 60])
async def test_query_is_a_key_range(
    database: PrivateDatabase, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """A page costs the same at any size of the table."""
    monkeypatch.setattr("database.QUERY", f"EXPLAIN FORMAT=TRADITIONAL {QUERY}")
    reader = Database(Settings(database.env("app")))
    halves = await reader.query(after)
    await reader.close()
    assert len(halves) == 2
    for half in halves:
        assert "range" in half
        assert "PRIMARY" in half
