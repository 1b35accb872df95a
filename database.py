"""How the accounts are read."""

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import asyncmy
from asyncmy.errors import MySQLError

from settings import Settings

log = logging.getLogger("cct")
Rows = tuple[tuple[Any, ...], ...]

PAGE_SIZE = 50
POOL_SIZE = 2  # connections, so at most two queries at once: more were not faster
MAX_ID = 2**63 - 1  # BIGINT
# The first half goes back a page: the id that it finds is the `after` of the previous page. Its name and email are not
# used, but without them MySQL takes 4 ms longer. Both halves are ranges of the primary key: any size costs the same.
QUERY = """
(SELECT id, name, email FROM accounts WHERE id <= %s ORDER BY id DESC LIMIT 1 OFFSET %s)
UNION ALL
(SELECT id, name, email FROM accounts WHERE id > %s ORDER BY id LIMIT %s)
"""
# MySQL's error codes, and what they mean here.
KINDS = {1054: "missing column", 1146: "missing table"} | dict.fromkeys((1044, 1045, 1142, 1143), "no right")


@dataclass(frozen=True, eq=False)  # compared by identity: a cache of rendered pages need not compare the rows
class Page:
    """Accounts as (id, name, email), and the `after` of the pages beside them, None if there is none."""

    accounts: Rows = ()
    previous: int | None = None
    next: int | None = None


@lru_cache(maxsize=64)  # equal rows give the same object, so the server renders it once: 10 % more requests a second
def make_page(after: int, rows: Rows) -> Page:
    """Return the page whose QUERY for `after` returned these rows."""
    accounts = tuple(sorted(row for row in rows if row[0] > after))  # UNION ALL promises no order
    back = next((row[0] for row in rows if row[0] <= after), 0)  # none: the previous page is the first
    return Page(
        accounts=accounts[:PAGE_SIZE],
        previous=back if after else None,
        next=accounts[PAGE_SIZE - 1][0] if len(accounts) > PAGE_SIZE else None,
    )


class ReadError(Exception):
    """The accounts could not be read; `kind` says why in a word or two."""

    def __init__(self, kind: str, detail: object) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind


def explain(error: Exception) -> ReadError:
    """Return the ReadError for what the driver raised."""
    if isinstance(error, MySQLError) and error.sqlstate:  # it comes from the database, not from the driver
        return ReadError(KINDS.get(error.args[0], "refused"), error.args[1])
    return ReadError("no answer", str(error) or "not in time")


class Database:
    """Connection pool that shares one query among the requests that wait for the same page."""

    def __init__(self, settings: Settings) -> None:
        self.timeout = settings.db_timeout
        self.pool = asyncmy.Pool(
            minsize=0,
            maxsize=POOL_SIZE,
            autocommit=True,  # each query sees the newest rows
            stmt_cache_size=8,  # prepared statements: 12 % more requests a second if each asks for another page
            read_timeout=self.timeout,  # a second limit: on Python 3.11 (`make local`) asyncmy may ignore the first
            **settings.connect_arguments(),
        )
        self.slots = asyncio.Semaphore(POOL_SIZE)  # first come, first served, which the pool's own queue is not
        self.waiting: dict[int, asyncio.Task[Page]] = {}  # the reads that wait for a slot, by `after`
        self.last_success = 0.0  # of a query, in the loop's time
        self.last_error = ""  # the kind of error of the last query, empty if it succeeded

    async def page(self, after: int) -> Page:
        """Return the accounts whose id is above `after`; raise ReadError, after DB_TIMEOUT at the latest.

        A request joins a read that waits for a slot, never one whose query has begun: no page is older than its
        request. All who join share the deadline of the first. If one is cancelled, all end without an answer: aiohttp
        cancels only requests that outlast the 3 s of a stop or of a closing.
        """
        read = self.waiting.get(after)
        if read is None or read.done():  # done, but never removed: it was cancelled
            read = self.waiting[after] = asyncio.create_task(self.read(after))
        return await read

    async def read(self, after: int) -> Page:
        """Wait for a slot, then query the database; raise ReadError. Log when errors begin, change or end."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout_at(began + self.timeout * 3 / 4):  # leaves the query a quarter of the time
                await self.slots.acquire()
        except TimeoutError:
            del self.waiting[after]
            kind = "busy" if self.last_success > began else "no answer"  # busy: it has answered others meanwhile
            raise ReadError(kind, f"{len(self.waiting)} more pages wait for a slot") from None
        try:
            await asyncio.sleep(0)  # what has just arrived can still join: 6 % more requests a second
            del self.waiting[after]
            async with asyncio.timeout_at(began + self.timeout):
                rows = await self.query(after)
        except (MySQLError, OSError, RuntimeError) as error:
            # OSError: the network, the password file, and TimeoutError. RuntimeError: MySQL's login without TLS.
            failure = explain(error)
            if failure.kind != self.last_error:
                self.last_error = failure.kind
                log.error("accounts cannot be read: %s", failure)
            raise failure from error
        finally:
            self.slots.release()
        self.last_success = loop.time()
        if self.last_error:
            self.last_error = ""
            log.info("accounts can be read again")
        return make_page(after, rows)

    async def query(self, after: int) -> Rows:
        """Return the rows of QUERY."""
        connection = await self.pool.acquire()  # not `async with`: it turns a cancellation into a KeyError
        try:
            async with connection.cursor() as cursor:
                await cursor.execute(QUERY, (after, PAGE_SIZE, after, PAGE_SIZE + 1))
                return tuple(await cursor.fetchall())
        finally:
            self.pool.release(connection)  # which drops it if the query was cut off

    async def close(self) -> None:
        """Close the connections; give up after a second."""
        self.pool.terminate()
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                await self.pool.wait_closed()
