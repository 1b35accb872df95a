"""How the server reads the accounts: one query, shared by the requests that wait for it."""

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import asyncmy
from asyncmy.errors import MySQLError

from settings import Settings

log = logging.getLogger("cct")

PAGE_SIZE = 50
POOL_SIZE = 2  # connections, so at most two queries at once: more were not faster
MAX_ID = 2**63 - 1  # BIGINT

# The first half finds the previous page. It returns one account: for after=150 it is the account
# 100, so the previous page is /?after=100. Only the id is used. The texts are there because both
# halves of a UNION need the same columns, and NULL instead of the texts would take 4 ms more.
# The second half returns the page, and one account more if there is a next page.
# Both halves are ranges of the primary key, so a page costs the same at any size of the table.
# LEFT bounds the memory that a page takes: a table made by hand may hold longer texts.
QUERY = """
(SELECT id, LEFT(name, 254), LEFT(email, 254) FROM accounts
 WHERE id <= %s ORDER BY id DESC LIMIT 1 OFFSET %s)
UNION ALL
(SELECT id, LEFT(name, 254), LEFT(email, 254) FROM accounts
 WHERE id > %s ORDER BY id LIMIT %s)
"""

# MySQL's error codes, and their meaning here.
KINDS = {
    1044: "access denied",
    1045: "access denied",
    1054: "missing column",
    1142: "access denied",
    1143: "access denied",
    1146: "missing table",
}

Rows = tuple[tuple[Any, ...], ...]


class ReadError(Exception):
    """The accounts cannot be read. `kind` is the reason in one to three words."""

    def __init__(self, kind: str, detail: object) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind


class Account(NamedTuple):
    """One row of the table."""

    id: int
    name: str
    email: str


@dataclass(frozen=True, eq=False)  # compared by identity, see make_page
class Page:
    """Up to PAGE_SIZE accounts, and the values of ?after= for the two links, or None."""

    accounts: tuple[Account, ...] = ()
    previous: int | None = None
    next: int | None = None


@lru_cache(maxsize=64)
def make_page(after: int, rows: Rows) -> Page:
    """Return the page for the rows of QUERY; raise ReadError if a value has the wrong type.

    This cache gives the same Page object for equal rows. The caches of render_html and render_json
    in server.py look a Page up by its identity, so they compare no rows. The three caches together
    give 10 % more requests a second.
    """
    accounts = sorted(make_account(*row) for row in rows)  # UNION ALL promises no order
    before = [account for account in accounts if account.id <= after]
    here = [account for account in accounts if account.id > after]
    previous = before[0].id if before else 0  # 0: the previous page is the first
    return Page(
        accounts=tuple(here[:PAGE_SIZE]),
        previous=previous if after > 0 else None,
        next=here[PAGE_SIZE - 1].id if len(here) > PAGE_SIZE else None,
    )


def make_account(account_id: Any, name: Any, email: Any) -> Account:
    """Return an account; raise ReadError if a value has the wrong type. NULL becomes ""."""
    if not isinstance(account_id, int):
        raise ReadError("wrong type", f"id is no integer: {account_id!r}")
    for value in (name, email):
        if value is not None and not isinstance(value, str):
            raise ReadError("wrong type", f"name or email is no text in account {account_id}")
    return Account(account_id, name or "", email or "")


class Database:
    """Connection pool that shares one query among the requests that wait for the same page."""

    def __init__(self, settings: Settings) -> None:
        self.timeout = settings.db_timeout
        self.pool = asyncmy.Pool(
            minsize=0,
            maxsize=POOL_SIZE,
            autocommit=True,  # each query sees the newest rows
            stmt_cache_size=8,  # prepared statements: 12 % more requests a second for random pages
            read_timeout=self.timeout,  # on Python 3.11, asyncmy may ignore asyncio's timeout
            **settings.connect_arguments(),
        )
        # Reads queue here, first in, first out. The pool's own queue is not fair.
        self.slots = asyncio.Semaphore(POOL_SIZE)
        self.waiting: dict[int, asyncio.Task[Page]] = {}  # reads that wait for a slot, by `after`
        self.last_success = 0.0  # time of the last successful query, on the loop's clock
        self.last_error = ""  # kind of the last query's error, empty if it succeeded

    async def page(self, after: int) -> Page:
        """Return the accounts whose id is above `after`; raise ReadError if that fails.

        The page or the error comes within DB_TIMEOUT. A request joins a read that waits for a
        slot, never one whose query has begun. So no page is older than its request. All requests
        that share a read have the deadline of the first. Cancelling one request cancels all that
        share its read. The server closes connections at a stop, or if it has too many (see
        run.py). aiohttp cancels a request on such a connection if it still runs 6 s later.
        """
        read = self.waiting.get(after)
        # wait_for_slot removes a read from `waiting`. A read that is cancelled before stays there.
        if read is None or read.cancelled():
            read = asyncio.create_task(self.read_page(after))
            self.waiting[after] = read
        return await read

    async def read_page(self, after: int) -> Page:
        """Wait for a slot, then query the database; raise ReadError.

        Only errors of the query are logged. A wait that fails shows as a 503 in the access log.
        """
        began = asyncio.get_running_loop().time()
        await self.wait_for_slot(after, began)
        try:
            async with asyncio.timeout_at(began + self.timeout):
                page = make_page(after, await self.query(after))
        except ReadError as error:
            self.note_error(error)
            raise
        except (MySQLError, OSError, RuntimeError, UnicodeDecodeError) as error:
            # OSError: the network, the password file, and TimeoutError.
            # RuntimeError: asyncmy could not log in without TLS.
            failure = explain(error)
            self.note_error(failure)
            raise failure from error
        finally:
            self.slots.release()
        self.note_success()
        return page

    async def wait_for_slot(self, after: int, began: float) -> None:
        """Take a slot; raise ReadError after three quarters of DB_TIMEOUT.

        The last quarter is for the query. Other requests for the same page can join until the
        slot is taken.
        """
        try:
            await asyncio.sleep(0)  # new requests can join: 6 % more requests a second
            async with asyncio.timeout_at(began + self.timeout * 3 / 4):
                await self.slots.acquire()
        except TimeoutError:
            # A query that has succeeded meanwhile shows that the database answers.
            kind = "busy" if self.last_success > began else "no answer"
            detail = f"{len(self.waiting)} pages wait for a slot"
            raise ReadError(kind, detail) from None
        finally:
            del self.waiting[after]

    async def query(self, after: int) -> Rows:
        """Return the rows of QUERY."""
        # `async with pool.acquire()` would raise KeyError if this task is cancelled.
        connection = await self.pool.acquire()
        try:
            async with connection.cursor() as cursor:
                await cursor.execute(QUERY, (after, PAGE_SIZE, after, PAGE_SIZE + 1))
                return tuple(await cursor.fetchall())
        except UnicodeDecodeError:
            connection.close()  # it still holds the rest of the rows
            raise
        finally:
            self.pool.release(connection)  # release drops a connection whose query was cut off

    def note_error(self, error: ReadError) -> None:
        """Log an error, unless the last one was of the same kind."""
        if error.kind != self.last_error:
            self.last_error = error.kind
            log.error("accounts cannot be read: %s", error)

    def note_success(self) -> None:
        """Keep the time of a success, and log that the errors have ended."""
        self.last_success = asyncio.get_running_loop().time()
        if self.last_error:
            self.last_error = ""
            log.info("accounts can be read again")

    async def close(self) -> None:
        """Close the connections; give up after a second."""
        self.pool.terminate()
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                await self.pool.wait_closed()


def explain(error: Exception) -> ReadError:
    """Return the ReadError for an exception of the driver."""
    if isinstance(error, UnicodeDecodeError):
        return ReadError("wrong type", error)
    if isinstance(error, MySQLError) and error.sqlstate:  # sent by the database
        code, message = error.args[:2]
        return ReadError(KINDS.get(code, "refused"), message)
    return ReadError("no answer", str(error) or "not in time")
