"""Requests that wait together share one query; nothing is older than a request, made twice or lost."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress

import aiohttp
import pytest

from server import Database, render_html
from tests.conftest import Client, Root, Rows, Server, Sql, until

Requests = list[asyncio.Task[int]]
Blocked = Callable[[int], AbstractAsyncContextManager[Requests]]


class Connection:
    """A raw connection to the server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def health(self) -> None:
        """Ask for the health and wait for the answer."""
        self.writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        await self.reader.readuntil(b"healthy\n")

    async def page(self, sent: asyncio.Event) -> int:
        """Ask for the page once, as no library does, and return the status; 0 without a whole answer."""
        try:
            self.writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            sent.set()
            answer = await self.reader.read()
            return int(answer.split()[1]) if answer.endswith(b"</html>\n") else 0
        finally:
            self.writer.close()


async def connect(server: Server) -> Connection:
    return Connection(*await asyncio.open_connection("127.0.0.1", server.port))


async def status(server: Server) -> int:
    return await (await connect(server)).page(asyncio.Event())


@pytest.fixture
def blocked(server: Server, root: Root, sql: Sql) -> Blocked:
    """Give a context in which one request's query runs, held up by a lock, and others wait for the next."""

    @asynccontextmanager
    async def context(others: int) -> AsyncIterator[Requests]:
        connections = [await connect(server) for _ in range(others + 2)]
        for connection in connections:
            await connection.health()  # the server has accepted it
        messenger, first, *rest = connections
        async with root() as database, database.cursor() as cursor:
            await cursor.execute("LOCK TABLES cct.accounts WRITE")
            requests = [asyncio.create_task(first.page(asyncio.Event()))]
            await until(lambda: running(sql))
            events = [asyncio.Event() for _ in rest]
            requests += [asyncio.create_task(one.page(sent)) for one, sent in zip(rest, events, strict=True)]
            await asyncio.gather(*(sent.wait() for sent in events))
            await messenger.health()  # and now it has read what was sent before this
            yield requests
            await cursor.execute("UNLOCK TABLES")
        messenger.writer.close()

    return context


async def running(sql: Sql) -> Rows:
    return await sql("SELECT id FROM information_schema.processlist WHERE user = 'app' AND state LIKE 'Waiting%%'")


async def others_running(sql: Sql, connection: int) -> Rows:
    return tuple(row for row in await running(sql) if row != (connection,))


async def selects(sql: Sql) -> int:
    ((_, count),) = await sql("SHOW GLOBAL STATUS LIKE 'Com_select'")
    return int(count)


async def test_page_is_never_older_than_its_request(server: Server, root: Root) -> None:
    async def check(session: aiohttp.ClientSession, account: int) -> None:
        async with root() as connection, connection.cursor() as cursor:
            for turn in range(200):
                await cursor.execute("UPDATE cct.accounts SET name = %s WHERE id = %s", (str(turn), account))
                async with session.get("/", headers={"Accept": "application/json"}) as response:
                    page = await response.json()
                assert page["accounts"][account - 1]["name"] == str(turn)

    async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as session:
        await asyncio.gather(*(check(session, account) for account in range(1, 17)))


async def test_hundred_requests_at_once_are_one_running_query_and_one_that_waits(blocked: Blocked, sql: Sql) -> None:
    async with blocked(100) as requests:
        before = await selects(sql)  # the running query is in it
    assert await asyncio.gather(*requests) == [200] * 101
    assert await selects(sql) == before + 1


async def test_client_that_hangs_up_takes_nobody_along(blocked: Blocked) -> None:
    async with blocked(3) as (first, second, *rest):
        first.cancel()
        second.cancel()
        await asyncio.wait([first, second])
    assert await asyncio.gather(*rest) == [200, 200]


async def test_failed_query_fails_those_who_waited_for_it_alone(blocked: Blocked, sql: Sql) -> None:
    async with blocked(3) as (first, *rest):
        ((connection,),) = await running(sql)
        await sql(f"KILL {connection}")
        assert await first == 503
    assert await asyncio.gather(*rest) == [200] * 3


async def test_failed_query_fails_all_who_waited_for_it(blocked: Blocked, server: Server, sql: Sql) -> None:
    async with blocked(3) as requests:
        ((first,),) = await running(sql)
        await sql(f"KILL {first}")
        ((second,),) = await until(lambda: others_running(sql, first))
        await sql(f"KILL {second}")
        async with asyncio.timeout(1):  # long before DB_TIMEOUT
            assert await asyncio.gather(*requests) == [503] * 4
    assert await status(server) == 200


async def test_equal_accounts_are_rendered_once(client: Client, sql: Sql) -> None:
    render_html.cache_clear()
    for _ in range(3):
        await client.get("/")
    assert render_html.cache_info().misses == 1
    await sql("UPDATE cct.accounts SET name = 'Changed' WHERE id = 1")
    assert "Changed" in await (await client.get("/")).text()
    assert render_html.cache_info().misses == 2


@pytest.mark.parametrize("after", [0, 60])
async def test_page_is_a_range_on_the_primary_key(client: Client, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    plan: list[set[str]] = []
    query = Database.query

    async def explain(self: Database, sql: str, *parameters: int) -> Rows:
        plan.extend(set(map(str, row)) for row in await query(self, f"EXPLAIN FORMAT=TRADITIONAL {sql}", *parameters))
        return ()

    monkeypatch.setattr(Database, "query", explain)
    await client.get(f"/?after={after}")
    assert len(plan) == 2
    assert all({"range", "PRIMARY"} <= part for part in plan)


async def test_log_has_a_line_for_each_answer_when_stopped_under_load(server: Server) -> None:
    async def count() -> int:
        answers = 0
        with suppress(OSError):
            while await status(server) == 200:
                answers += 1
        return answers

    clients = asyncio.gather(*(count() for _ in range(32)))
    await asyncio.sleep(1)
    server.process.terminate()
    answers = sum(await clients)
    assert await asyncio.to_thread(server.process.wait, 5) == 0
    assert answers > 100
    assert sum(" GET '/' 200 " in line for line in server.lines()) == answers
