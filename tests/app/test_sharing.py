"""Requests that wait together share one query; nothing is older than a request, made twice or lost."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import aiohttp
import pytest

from database import POOL_SIZE, QUERY, Database, Page
from settings import Settings
from tests.conftest import ServerProcess
from tests.database import DatabaseServer
from tests.helpers import until

HTML, JSON = "text/html", "application/json"
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Requests = list[asyncio.Task[int]]


def ask(stream: Stream, accept: str = HTML) -> asyncio.Task[int]:
    """Send a request for the page now; return a task whose result is the status, 0 without a whole answer."""
    reader, writer = stream
    head = f"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\nConnection: close\r\n\r\n"
    writer.write(head.encode())

    async def status() -> int:
        try:
            answer = await reader.read()
            return int(answer.split()[1]) if answer.endswith((b"</html>\n", b"}\n")) else 0
        finally:
            writer.close()

    return asyncio.create_task(status())


async def ask_health(stream: Stream) -> None:
    """Wait for the answer of /health: by then the server has accepted this connection, and read what came before."""
    reader, writer = stream
    writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await reader.readuntil(b"healthy\n")


@asynccontextmanager
async def blocked(
    server: ServerProcess, database: DatabaseServer, *others: str
) -> AsyncIterator[Requests]:
    """Give requests: as many as there may be queries, held up by a lock, and others that wait for the next query."""
    streams = [
        await asyncio.open_connection("127.0.0.1", server.port)
        for _ in range(POOL_SIZE + len(others) + 1)
    ]
    for stream in streams:
        await ask_health(stream)
    async with database.cursor() as cursor:
        await cursor.execute("LOCK TABLES cct.accounts WRITE")
        requests: Requests = []
        for count in range(1, POOL_SIZE + 1):
            requests.append(ask(streams.pop()))
            await asyncio.to_thread(
                until, lambda count=count: len(running(database)) == count, "held up"
            )
        requests += [ask(streams.pop(), accept) for accept in others]
        await ask_health(streams[0])
        yield requests
        await cursor.execute("UNLOCK TABLES")
    streams[0][1].close()


def running(database: DatabaseServer) -> set[int]:
    """Return the connections whose queries the lock holds up."""
    return database.connections(state="Waiting%")


def selects(database: DatabaseServer) -> int:
    ((_, count),) = database.sql("SHOW GLOBAL STATUS LIKE 'Com_select'")
    return int(count)


async def test_page_is_never_older_than_its_request(
    server: ServerProcess, database: DatabaseServer
) -> None:
    async def check(session: aiohttp.ClientSession, account: int) -> None:
        async with database.cursor() as cursor:
            for turn in range(200):
                await cursor.execute(
                    "UPDATE cct.accounts SET name = %s WHERE id = %s", (str(turn), account)
                )
                async with session.get("/", headers={"Accept": "application/json"}) as response:
                    page = await response.json()
                assert page["accounts"][account - 1]["name"] == str(turn)

    async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as session:
        await asyncio.gather(*(check(session, account) for account in range(1, 17)))


async def test_hundred_requests_at_once_share_one_query(
    server: ServerProcess, database: DatabaseServer
) -> None:
    async with blocked(server, database, *[HTML, JSON] * 50) as requests:
        before = selects(database)  # the running queries are in it
    assert await asyncio.gather(*requests) == [200] * (POOL_SIZE + 100)
    assert selects(database) == before + 1


async def test_client_that_hangs_up_takes_nobody_along(
    server: ServerProcess, database: DatabaseServer
) -> None:
    async with blocked(server, database, HTML, HTML, HTML) as (first, _, third, *rest):
        first.cancel()
        third.cancel()
        await asyncio.wait([first, third])
    assert await asyncio.gather(*rest) == [200, 200]


async def test_failed_query_fails_all_who_waited_for_it(
    server: ServerProcess, database: DatabaseServer
) -> None:
    async with blocked(server, database, HTML, HTML, HTML) as (*begun, second, third, fourth):
        held_up = running(database)
        database.sql(f"KILL {held_up.pop()}")  # its turn goes to the next
        (next_,) = await asyncio.to_thread(
            until, lambda: running(database) - held_up, "another query held up"
        )
        database.sql(f"KILL {next_}")
        async with asyncio.timeout(1):  # long before DB_TIMEOUT
            assert {await second, await third, await fourth} == {503}
    assert sorted(await asyncio.gather(*begun)) == [*[200] * (POOL_SIZE - 1), 503]


@pytest.mark.parametrize("while_", ["it queries", "it connects", "it waits for a slot"])
async def test_read_that_is_cancelled_at_any_point_leaves_nobody_waiting(
    database: DatabaseServer, monkeypatch: pytest.MonkeyPatch, while_: str
) -> None:
    monkeypatch.setattr("database.POOL_SIZE", 1)  # so that a lost slot is missed at once
    reader = Database(Settings.read(database.env("app")))
    turns, cancelled = 0, True
    while cancelled:
        if while_ == "it connects":
            await reader.close()
            reader = Database(Settings.read(database.env("app")))
        first = [reader.page(1)] if while_ == "it waits for a slot" else []
        waiters = [
            asyncio.create_task(page) for page in (*first, *(reader.page(0) for _ in range(3)))
        ]
        await asyncio.sleep(0)
        read = reader.waiting[0]
        for _ in range(turns):
            await asyncio.sleep(0)
        cancelled = read.cancel()
        async with asyncio.timeout(1):
            pages = await asyncio.gather(*waiters, return_exceptions=True)
            assert {type(page) for page in pages} <= {asyncio.CancelledError, Page}
            assert isinstance(await reader.page(0), Page)
        turns += 1
    assert turns > 3
    await reader.close()


@pytest.mark.parametrize("after", [0, 60])
async def test_query_is_a_key_range(
    database: DatabaseServer, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    monkeypatch.setattr("database.QUERY", f"EXPLAIN FORMAT=TRADITIONAL {QUERY}")
    reader = Database(Settings.read(database.env("app")))
    plan = await reader.query(after)
    assert len(plan) == 2
    assert all({"range", "PRIMARY"} <= set(map(str, part)) for part in plan)
    await reader.close()


async def test_log_has_a_line_for_each_answer_when_stopped_under_load(
    server: ServerProcess,
) -> None:
    async def count() -> int:
        answers = 0
        with suppress(OSError):
            while await ask(await asyncio.open_connection("127.0.0.1", server.port)) == 200:
                answers += 1
        return answers

    clients = asyncio.gather(*(count() for _ in range(32)))
    await asyncio.sleep(1)
    server.process.terminate()
    answers = sum(await clients)
    assert await asyncio.to_thread(server.process.wait, 5) == 0
    assert answers > 100
    assert sum(" GET '/' 200 " in line for line in server.lines()) == answers
