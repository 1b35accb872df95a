"""Create the accounts table and fill it, once: a table that has rows stays exactly as it is."""

import asyncio
import csv
import itertools
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import asyncmy
from asyncmy.connection import Connection
from asyncmy.cursors import Cursor
from asyncmy.errors import MySQLError

from server import DatabaseSettings, Env, number, start_log

log = logging.getLogger("cct")

SCHEMA = Path(__file__).with_name("schema.sql")
Account = tuple[str, str]  # name, email
COLUMNS = ["name", "email"]
MAX_LENGTH = 254  # characters, as in schema.sql
BATCH = 1000  # rows in one INSERT

FIRST_NAMES = "Ada Björn Chloé Dmitri Émilie Fatima Grace Håkon Inés Jürgen Kateřina Łukasz María Noor Oğuz Wei".split()
LAST_NAMES = "Andersson Brontë Çelik Dvořák Esposito García Hopper Itō Jørgensen Kowalski Lovelace Nguyễn 王".split()


@dataclass(frozen=True)
class SeedSettings:
    """What the seeder reads from its environment; `wait` in seconds."""

    accounts: int
    file: str
    wait: float
    database: DatabaseSettings

    @classmethod
    def read(cls, env: Env) -> "SeedSettings":
        """Read all settings; SystemExit with a sentence that names the bad one."""
        return cls(
            accounts=number(env, "SEED_ACCOUNTS", 100, 0, 100_000_000),
            file=env.get("SEED_FILE", ""),
            wait=number(env, "SEED_WAIT", 60.0, 0.0, 3600.0),
            database=DatabaseSettings.read(env),
        )


def generate(count: int) -> Iterator[Account]:
    """Yield `count` accounts, the same ones each time."""
    for i in range(count):
        yield f"{FIRST_NAMES[i % len(FIRST_NAMES)]} {LAST_NAMES[i % len(LAST_NAMES)]}", f"account{i + 1}@example.com"


def load(file: str) -> Iterator[Account]:
    """Yield the accounts of a CSV file; SystemExit with a sentence that names the line and column of a bad one."""
    try:
        with Path(file).open(encoding="utf-8-sig", newline="") as lines:
            rows = csv.reader(lines, strict=True)
            header = next(rows, [])
            if sorted(header) != sorted(COLUMNS):
                raise SystemExit(f"{file}, line 1: the header must be {','.join(COLUMNS)}, not {','.join(header)!r}.")
            for row in filter(None, rows):
                account = dict(zip(header, row, strict=False))
                for column in header:
                    if not 0 < len(account.get(column, "")) <= MAX_LENGTH:
                        raise SystemExit(
                            f"{file}, line {rows.line_num}, column {column}: 1 to {MAX_LENGTH} characters are needed."
                        )
                if len(row) > len(header):
                    raise SystemExit(f"{file}, line {rows.line_num}: there are more values than columns.")
                yield account["name"], account["email"]
    except csv.Error as error:
        raise SystemExit(f"{file}, line {rows.line_num}: {error}.") from None
    except UnicodeDecodeError as error:
        raise SystemExit(f"{file} is not UTF-8: {error}.") from None
    except OSError as error:
        raise SystemExit(f"SEED_FILE cannot be read: {error}.") from None


async def connect(settings: SeedSettings) -> Connection:
    """Return a connection, as soon as the database gives one; SystemExit after SEED_WAIT seconds without."""
    deadline = time.monotonic() + settings.wait
    while True:
        try:
            async with asyncio.timeout(settings.database.timeout):
                return await asyncmy.connect(**settings.database.connection())
        except (MySQLError, OSError, RuntimeError) as error:
            if time.monotonic() > deadline:
                where = f"{settings.database.host}:{settings.database.port}"
                raise SystemExit(f"No database at {where} within {settings.wait:g} s: {error}.") from None
        await asyncio.sleep(0.5)


def inserts(cursor: Cursor, accounts: Iterator[Account]) -> Iterator[tuple[int, str]]:
    """Yield the number of rows and the text of each INSERT."""
    while batch := list(itertools.islice(accounts, BATCH)):
        statement = "INSERT INTO accounts (name, email) VALUES (%s, %s)" + ", (%s, %s)" * (len(batch) - 1)
        yield len(batch), cursor.mogrify(statement, list(itertools.chain.from_iterable(batch)))


async def seed(settings: SeedSettings) -> None:
    """Create the table and, unless it has rows, fill it: all rows or none."""
    accounts = load(settings.file) if settings.file else generate(settings.accounts)
    async with await connect(settings) as connection, connection.cursor() as cursor:
        await cursor.execute("SELECT GET_LOCK('cct.seed', %s)", (settings.wait,))  # held until the connection ends
        if await cursor.fetchone() != (1,):
            raise SystemExit(f"Another seeder has been at work for {settings.wait:g} s.")
        await cursor.execute(SCHEMA.read_text())
        await cursor.execute("SELECT EXISTS (SELECT 1 FROM accounts)")
        if await cursor.fetchone() == (1,):
            log.info("accounts has rows already: nothing to do")
            return
        coming = inserts(cursor, accounts)
        insert, done, report = next(coming, None), 0, time.monotonic()
        while insert:
            rows, statement = insert  # while the database works on it, a thread prepares the next one
            _, insert = await asyncio.gather(cursor.execute(statement), asyncio.to_thread(next, coming, None))
            done += rows
            if time.monotonic() - report > 2:
                report = time.monotonic()
                log.info("inserted %d accounts so far", done)
        await connection.commit()
        log.info("inserted %d accounts", done)


def main() -> None:
    """Seed; SystemExit with a sentence where that fails."""
    settings = SeedSettings.read(os.environ)
    start_log()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Stopped."))  # process 1 has no default for it
    try:
        asyncio.run(seed(settings))
    except (MySQLError, OSError) as error:
        raise SystemExit(f"The database failed: {error}. Run the seeder again: it fills in all or none.") from None


if __name__ == "__main__":
    main()
