"""The seeder of cct: create the accounts table and fill it, once. A table that has rows stays exactly as it is."""

import asyncio
import csv
import itertools
import logging
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import asyncmy
from asyncmy.cursors import Cursor
from asyncmy.errors import MySQLError

from settings import Settings, start_log

log = logging.getLogger("cct")

SCHEMA = Path(__file__).with_name("schema.sql")
COLUMNS = ("name", "email")
Account = tuple[str, ...]  # a value for each column
MAX_LENGTH = 254  # characters of a value, as in schema.sql
INSERT, ROW = "INSERT INTO accounts (id, name, email) VALUES ", "(%s, %s, %s)"
BATCH = 1000  # rows

FIRST_NAMES = "Ada Björn Chloé Dmitri Émilie Fatima Grace Håkon Inés Jürgen Kateřina Łukasz María Noor Oğuz Wei".split()
LAST_NAMES = "Andersson Brontë Çelik Dvořák Esposito García Hopper Itō Jørgensen Kowalski Lovelace Nguyễn 王".split()


def generate(count: int) -> Iterator[Account]:
    """Yield `count` accounts, the same ones each time."""
    for i in range(count):
        yield f"{FIRST_NAMES[i % len(FIRST_NAMES)]} {LAST_NAMES[i % len(LAST_NAMES)]}", f"account{i + 1}@example.com"


def load(file: str) -> Iterator[Account]:
    """Yield the accounts of a CSV file; exit with a message that names the line of the first invalid one."""
    try:
        with Path(file).open(encoding="utf-8-sig", newline="") as lines:
            rows = csv.DictReader(lines, strict=True)
            header = rows.fieldnames or ()
            if sorted(header) != sorted(COLUMNS):
                raise SystemExit(f"{file}, line 1: the header must be {','.join(COLUMNS)}, not {','.join(header)!r}.")
            for row in rows:
                account = tuple(row[column] or "" for column in COLUMNS)
                if None in row or not all(0 < len(value) <= MAX_LENGTH for value in account):
                    needed = f"{' and '.join(COLUMNS)}, of 1 to {MAX_LENGTH} characters each, and no more"
                    raise SystemExit(f"{file}, line {rows.line_num}: a line needs {needed}.")
                yield account
    except csv.Error as error:
        raise SystemExit(f"{file}, line {rows.reader.line_num}: {error}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SystemExit(f"SEED_FILE {file} cannot be read: {error}.") from None


async def fill(cursor: Cursor, accounts: Iterator[Account], wait: float) -> str:
    """Insert all accounts in one transaction unless the table has rows; TimeoutError after `wait` s of no progress."""
    async with asyncio.timeout(wait) as limit:  # with read_timeout, closing TLS may add 30 s
        await cursor.execute(SCHEMA.read_text())  # commits. Autocommit is off: the next statement begins a transaction
        await cursor.execute("SELECT EXISTS (SELECT 1 FROM accounts)")
        if await cursor.fetchone() == (1,):
            return "accounts has rows already: nothing to do"
        count, rows = 0, ((id, *account) for id, account in enumerate(accounts, 1))
        while batch := list(itertools.islice(rows, BATCH)):
            values = [value for row in batch for value in row]
            await cursor.execute(INSERT + ", ".join([ROW] * len(batch)), values)
            limit.reschedule(asyncio.get_running_loop().time() + wait)
            count += len(batch)
            if count % (100 * BATCH) == 0:
                log.info("inserted %d accounts so far", count)
        await cursor.execute("COMMIT")
        return f"inserted {count} accounts"


async def seed(settings: Settings) -> None:
    """Create the table and fill it, all rows or none; try for SEED_WAIT seconds, then exit with a message.

    The ids begin with 1, so the primary key lets only one of two seeders commit. The other tries again, and finds rows.
    """
    deadline = time.monotonic() + settings.seed_wait
    lock_wait = f"SET innodb_lock_wait_timeout = {int(settings.seed_wait / 2) or 1}"  # for another seeder; then retry
    last_error = ""
    while True:
        accounts = load(settings.seed_file) if settings.seed_file else generate(settings.seed_accounts)
        try:
            async with asyncio.timeout(settings.db_timeout):
                connection = await asyncmy.connect(init_command=lock_wait, **settings.connect_arguments())
            async with connection, connection.cursor() as cursor:
                log.info(await fill(cursor, accounts, settings.seed_wait))
                return
        except (MySQLError, OSError, RuntimeError) as error:  # RuntimeError: MySQL's login without TLS
            if time.monotonic() > deadline:
                message = f"The database at {settings.db_host}:{settings.db_port} could not be seeded"
                raise SystemExit(f"{message} (SEED_WAIT is {settings.seed_wait:g} s): {error!r}.") from None
            if repr(error) != last_error:
                last_error = repr(error)
                log.info("cannot seed yet: %s", last_error)
        await asyncio.sleep(0.5)


def stop(*_: object) -> None:
    """Exit at once; the database rolls back. An exception raised here would print asyncio's tracebacks."""
    os.write(2, b"Stopped.\n")
    os._exit(1)


def main() -> None:
    """Run the seeder; exit with a message if it fails."""
    settings = Settings.read(os.environ)
    start_log()
    signal.signal(signal.SIGTERM, stop)  # without a handler the kernel drops it for process 1
    asyncio.run(seed(settings))


if __name__ == "__main__":
    main()
