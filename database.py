"""How the accounts are read: the query, and the pool that shares it among the requests that wait together."""

import asyncio
import gc
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
POOL_SIZE = 2  # connections, and so queries at a time: more are no faster
MAX_ID = 2**63 - 1  # BIGINT
# Both halves are ranges of the primary key, so a page costs the same in a table of any size. The first finds where the
# previous page begins. It selects whole rows: measured, MySQL takes 4 ms longer if it needs the ids alone.
QUERY = """
(SELECT id, name, email FROM accounts WHERE id <= %s ORDER BY id DESC LIMIT 1 OFFSET %s)
UNION ALL
(SELECT id, name, email FROM accounts WHERE id > %s ORDER BY id LIMIT %s)
"""
KINDS = {1054: "missing column", 1146: "missing table"} | dict.fromkeys((1044, 1045, 1142, 1143), "no right")


@dataclass(frozen=True, eq=False)
class Page:
    """Accounts as (id, name, email), and the `after` of the pages beside them, None if there is none."""

    accounts: Rows
    previous: int | None
    next: int | None


@lru_cache(maxsize=64)  # equal rows give the same Page, so the server renders it once: a tenth of its rate
def make_page(after: int, rows: Rows) -> Page:
    """Return the page whose QUERY for `after` returned these rows."""
    accounts = tuple(sorted(row for row in rows if row[0] > after))  # UNION ALL promises no order
    before = next((row[0] for row in rows if row[0] <= after), 0)
    return Page(
        accounts=accounts[:PAGE_SIZE],
        previous=before if after else None,
        next=accounts[PAGE_SIZE - 1][0] if len(accounts) > PAGE_SIZE else None,
    )


class ReadError(Exception):
    """The accounts could not be read; `kind` says why in a word or two."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind


def read_error(error: Exception) -> ReadError:
    """Return the ReadError for what the database driver raised."""
    code, text = error.args if isinstance(error, MySQLError) and len(error.args) == 2 else (0, str(error))
    if not code or 2000 <= code < 3000:  # the driver's own: network, password file, login without TLS
        return ReadError("no answer", text or "not in time")
    return ReadError(KINDS.get(code, "refused"), text)


class Database:
    """Connection pool that shares one query among the requests that wait for the same page."""

    def __init__(self, settings: Settings) -> None:
        self.timeout = settings.db_timeout
        self.pool = asyncmy.Pool(
            minsize=0,
            maxsize=POOL_SIZE,
            autocommit=True,  # each query sees the newest rows
            stmt_cache_size=8,  # prepared statements: a tenth more pages a second
            read_timeout=self.timeout,  # for Python 3.11, which may lose the cancellation of a new connection
            **settings.connect_arguments(),
        )
        self.slots = asyncio.Semaphore(POOL_SIZE)
        self.waiting: dict[int, asyncio.Task[Page]] = {}  # the reads that wait for a slot, by `after`
        self.answered = 0.0  # when the database last answered, in the loop's time
        self.trouble = ""  # the kind of the last ReadError, empty since the database answers again

    async def page(self, after: int) -> Page:
        """Return the accounts whose id is above `after`; raise ReadError, after DB_TIMEOUT at the latest.

        A request joins a read that waits for a slot, never one whose query has begun: no page is older than its
        request. Whoever joins inherits the deadline of the first.
        """
        read = self.waiting.get(after)
        if read is None or read.done():  # done and still there: it was cancelled
            read = self.waiting[after] = asyncio.create_task(self.read(after))
        try:
            return await read
        except asyncio.CancelledError:
            if read.cancelled():  # when a stop takes too long, aiohttp cancels a request, and with it the read
                raise ReadError("no answer", "the query was cancelled") from None
            raise

    async def read(self, after: int) -> Page:
        """Wait for a slot, then query the database; raise ReadError."""
        began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout_at(began + self.timeout * 3 / 4):  # the last quarter is for the query
                await self.slots.acquire()
        except TimeoutError:
            del self.waiting[after]
            kind = "busy" if self.answered > began else "no answer"
            raise self.report(ReadError(kind, f"{len(self.waiting)} more pages wait for a slot")) from None
        try:
            await asyncio.sleep(0)  # let the requests of the same turn of the loop join
            del self.waiting[after]
            async with asyncio.timeout_at(began + self.timeout):
                rows = await self.query(QUERY, after, PAGE_SIZE, after, PAGE_SIZE + 1)
        except (MySQLError, OSError, RuntimeError) as error:
            # OSError is also the timeout, RuntimeError a login without TLS.
            raise self.report(read_error(error)) from error
        finally:
            self.slots.release()
        self.report_answer()
        return make_page(after, rows)

    async def query(self, sql: str, *parameters: int) -> Rows:
        """Return the rows of a query."""
        connection = await self.pool.acquire()  # not `async with`: it turns a cancellation into a KeyError
        try:
            async with connection.cursor() as cursor:
                await cursor.execute(sql, parameters)
                return tuple(await cursor.fetchall())
        finally:
            self.pool.release(connection)

    def report(self, error: ReadError) -> ReadError:
        """Log trouble when it begins or changes; return the error."""
        if error.kind != self.trouble:
            self.trouble = error.kind
            log.error("accounts cannot be read: %s", error)
        return error

    def report_answer(self) -> None:
        """Note that the database answered; log the end of trouble. "busy" ends when no read waits any more."""
        self.answered = asyncio.get_running_loop().time()
        if self.trouble and (self.trouble != "busy" or not self.waiting):
            self.trouble = ""
            log.info("accounts can be read again")
            gc.collect()  # lost connections are reference cycles: do not keep them until the next collection

    async def close(self) -> None:
        """Close the connections; give up after a second."""
        self.pool.terminate()
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                await self.pool.wait_closed()
