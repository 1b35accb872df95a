"""Requests that wait together share one query; nothing is older than a request, made twice or lost."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress

import aiohttp
import pytest

from database import POOL_SIZE, Database, Page, ReadError
from server import render_html
from settings import Settings
from tests.conftest import Client, ServerProcess, Sql
from tests.database import DatabaseServer, Rows
from tests.helpers import until

HTML, JSON = "text/html", "application/json"
Requests = list[asyncio.Task[int]]
Blocked = Callable[..., AbstractAsyncContextManager[Requests]]


class Visitor:
    """A raw connection to the server, which asks for the page once."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def health(self) -> None:
        """Ask for the health and wait for the answer: the server has read what others sent before."""
        self.writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await self.reader.readuntil(b"healthy\n")

    def ask(self, accept: str = HTML) -> asyncio.Task[int]:
        """Send the request now; return a task whose result is the status, 0 without a whole answer."""
        head = f"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\nConnection: close\r\n\r\n"
        self.writer.write(head.encode())
        return asyncio.create_task(self.status())

    async def status(self) -> int:
        try:
            answer = await self.reader.read()
            return int(answer.split()[1]) if answer.endswith((b"</html>\n", b"}\n")) else 0
        finally:
            self.writer.close()


async def connect(server: ServerProcess) -> Visitor:
    return Visitor(*await asyncio.open_connection("127.0.0.1", server.port))


async def status(server: ServerProcess) -> int:
    return await (await connect(server)).ask()


@pytest.fixture
def blocked(server: ServerProcess, database: DatabaseServer, sql: Sql) -> Blocked:
    """Give a context in which a lock holds up as many queries as there may be, and others wait for the next."""

    @asynccontextmanager
    async def context(*others: str) -> AsyncIterator[Requests]:
        visitors = [await connect(server) for _ in range(POOL_SIZE + len(others) + 1)]
        for visitor in visitors:
            await visitor.health()  # the server has accepted it
        messenger = visitors.pop()
        async with database.connect() as connection, connection.cursor() as cursor:
            await cursor.execute("LOCK TABLES cct.accounts WRITE")
            requests: Requests = []
            for count in range(1, POOL_SIZE + 1):
                requests.append(visitors.pop().ask())
                await asyncio.to_thread(until, lambda count=count: len(running(sql)) == count, "held up")
            requests += [visitor.ask(accept) for visitor, accept in zip(visitors, others, strict=True)]
            await messenger.health()
            yield requests
            await cursor.execute("UNLOCK TABLES")
        messenger.writer.close()

    return context


def running(sql: Sql) -> set[int]:
    """Return the connections whose queries the lock holds up."""
    rows = sql("SELECT id FROM information_schema.processlist WHERE user = 'app' AND state LIKE 'Waiting%%'")
    return {id for (id,) in rows}


def selects(sql: Sql) -> int:
    ((_, count),) = sql("SHOW GLOBAL STATUS LIKE 'Com_select'")
    return int(count)


async def test_page_is_never_older_than_its_request(server: ServerProcess, database: DatabaseServer) -> None:
    async def check(session: aiohttp.ClientSession, account: int) -> None:
        async with database.connect() as connection, connection.cursor() as cursor:
            for turn in range(200):
                await cursor.execute("UPDATE cct.accounts SET name = %s WHERE id = %s", (str(turn), account))
                async with session.get("/", headers={"Accept": "application/json"}) as response:
                    page = await response.json()
                assert page["accounts"][account - 1]["name"] == str(turn)

    async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as session:
        await asyncio.gather(*(check(session, account) for account in range(1, 17)))


async def test_hundred_requests_at_once_for_people_and_programs_share_one_query(blocked: Blocked, sql: Sql) -> None:
    async with blocked(*[HTML, JSON] * 50) as requests:
        before = selects(sql)  # the running queries are in it
    assert await asyncio.gather(*requests) == [200] * (POOL_SIZE + 100)
    assert selects(sql) == before + 1


async def test_client_that_hangs_up_takes_nobody_along(blocked: Blocked) -> None:
    async with blocked(HTML, HTML, HTML) as (first, _, third, *rest):
        first.cancel()
        third.cancel()
        await asyncio.wait([first, third])
    assert await asyncio.gather(*rest) == [200, 200]


async def test_failed_query_fails_all_who_waited_for_it_and_nobody_else(blocked: Blocked, sql: Sql) -> None:
    async with blocked(HTML, HTML, HTML) as (*begun, second, third, fourth):
        held_up = running(sql)
        sql(f"KILL {held_up.pop()}")  # its turn goes to the next
        (next_,) = await asyncio.to_thread(until, lambda: running(sql) - held_up, "another query held up")
        sql(f"KILL {next_}")
        async with asyncio.timeout(1):  # long before DB_TIMEOUT
            assert {await second, await third, await fourth} == {503}
    assert sorted(await asyncio.gather(*begun)) == [*[200] * (POOL_SIZE - 1), 503]


@pytest.mark.parametrize("while_", ["it queries", "it connects", "it waits for its turn"])
async def test_read_that_is_cancelled_at_any_point_leaves_nobody_waiting(database: DatabaseServer, while_: str) -> None:
    program = Database(Settings.read(database.env("app")))
    others = range(1, 2 * POOL_SIZE + 1) if while_ == "it waits for its turn" else range(0)
    turns, cancelled = 0, True
    while cancelled:
        for _ in range(POOL_SIZE + 1):  # as often as would use up all turns, if one were lost each time
            if while_ == "it connects":
                await program.close()
                program = Database(Settings.read(database.env("app")))
            waiters = [asyncio.create_task(program.page(after)) for after in (*others, 0, 0, 0)]
            await asyncio.sleep(0)
            read = program.waiting[0]
            for _ in range(turns):
                await asyncio.sleep(0)
            cancelled = read.cancel()
            async with asyncio.timeout(1):
                pages = await asyncio.gather(*waiters, return_exceptions=True)
                assert {type(page) for page in pages[len(others) :]} <= {ReadError, Page}
                assert {type(page) for page in (*pages[: len(others)], await program.page(0))} == {Page}
        turns += 1
    assert turns > 3
    await program.close()


async def test_equal_accounts_are_rendered_once(client: Client, sql: Sql) -> None:
    render_html.cache_clear()
    for _ in range(3):
        await client.get("/")
    assert render_html.cache_info().misses == 1
    sql("UPDATE cct.accounts SET name = 'Changed' WHERE id = 1")
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


async def test_log_has_a_line_for_each_answer_when_stopped_under_load(server: ServerProcess) -> None:
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
