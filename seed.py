"""The seeder of cct: create the accounts table and fill it. Existing rows stay as they are."""

import asyncio
import csv
import itertools
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import asyncmy
from asyncmy.cursors import Cursor
from asyncmy.errors import MySQLError

from settings import TIME_FORMAT, Settings

log = logging.getLogger("cct")

Values = tuple[str, ...]  # the values of one account, in the order of COLUMNS

SCHEMA = Path(__file__).with_name("schema.sql")
COLUMNS = ("name", "email")
MAX_LENGTH = 254  # characters of a value, as in schema.sql
INSERT = f"INSERT INTO accounts (id, {', '.join(COLUMNS)}) VALUES "
ROW = f"({', '.join(['%s'] * (1 + len(COLUMNS)))})"  # the id, and COLUMNS
BATCH = 1000  # rows in one statement
RULE = f"a line needs exactly {' and '.join(COLUMNS)}, each of 1 to {MAX_LENGTH} characters"

FIRST_NAMES = (
    "Ada Björn Chloé Dmitri Émilie Fatima Grace Håkon "
    "Inés Jürgen Kateřina Łukasz María Noor Oğuz Wei"
).split()
LAST_NAMES = (
    "Andersson Brontë Çelik Dvořák Esposito García Hopper Itō Jørgensen Kowalski Lovelace Nguyễn 王"
).split()


def generate(count: int) -> Iterator[Values]:
    """Yield `count` accounts, the same ones each time."""
    for number in range(count):
        first = FIRST_NAMES[number % len(FIRST_NAMES)]
        last = LAST_NAMES[number % len(LAST_NAMES)]
        yield f"{first} {last}", f"account{number + 1}@example.com"


def load(file: str) -> Iterator[Values]:
    """Yield the accounts of a CSV file; exit with a message that names the first invalid line."""
    try:
        with Path(file).open(encoding="utf-8-sig", newline="") as lines:
            rows = csv.DictReader(lines, strict=True)
            header = rows.fieldnames or ()
            if sorted(header) != sorted(COLUMNS):
                expected = ",".join(COLUMNS)
                found = ",".join(header)
                raise SystemExit(f"{file}, line 1: the header must be {expected}, not {found!r}.")
            for row in rows:
                account = tuple(row[column] or "" for column in COLUMNS)
                has_more_values = None in row
                if has_more_values or not all(0 < len(value) <= MAX_LENGTH for value in account):
                    raise SystemExit(f"{file}, line {rows.line_num}: {RULE}.")
                yield account
    except csv.Error as error:
        raise SystemExit(f"{file}, line {rows.reader.line_num}: {error}.") from None
    except UnicodeDecodeError:
        line = find_undecodable_line(file)
        raise SystemExit(f"{file}, line {line}: this is not UTF-8. Save it as UTF-8.") from None
    except OSError as error:
        raise SystemExit(f"SEED_FILE {file} cannot be read: {error}.") from None


def find_undecodable_line(file: str) -> int:
    """Return the number of the first line that is not UTF-8."""
    with Path(file).open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.decode(errors="ignore").encode() != line:
                return number
    raise AssertionError("all lines are UTF-8")  # cannot happen after a UnicodeDecodeError


def accounts(settings: Settings) -> Iterator[Values]:
    """Yield the accounts that the settings ask for."""
    return load(settings.seed_file) if settings.seed_file else generate(settings.seed_accounts)


async def seed(settings: Settings) -> None:
    """Create the table and fill it, all rows or none.

    After an error, try again. Exit with a message if SEED_WAIT seconds have passed since the start.
    All seeders insert id 1, and the primary key allows it once. So only one seeder can commit. The
    others try again, and find rows.
    """
    deadline = time.monotonic() + settings.seed_wait
    last_error = ""
    while True:
        try:
            await seed_once(settings)
            return
        except (MySQLError, OSError, RuntimeError) as error:  # RuntimeError: login without TLS
            # Only after an error: with Docker's host network, DB_HOST=localhost can work.
            refuse_own_container(settings)
            if time.monotonic() > deadline:
                raise SystemExit(explain_failure(settings, error)) from None
            if repr(error) != last_error:
                last_error = repr(error)
                log.info("cannot seed yet: %s", last_error)
        await asyncio.sleep(0.5)


def refuse_own_container(settings: Settings) -> None:
    """Exit with a message if DB_HOST names the seeder's own container."""
    if settings.db_host == "localhost" and Path("/.dockerenv").exists():
        hint = "set DB_HOST=host.docker.internal for a database on this machine"
        raise SystemExit(f"In a container, localhost is the container: {hint}.")


def explain_failure(settings: Settings, error: Exception) -> str:
    """Return why the seeder gives up."""
    database = f"The database at {settings.db_host}:{settings.db_port}"
    limit = f"SEED_WAIT is {settings.seed_wait:g} s"
    return f"{database} could not be seeded ({limit}): {error!r}."


async def seed_once(settings: Settings) -> None:
    """Connect, create the table and fill it."""
    async with asyncio.timeout(settings.db_timeout):
        connection = await asyncmy.connect(**settings.connect_arguments())
    async with connection, connection.cursor() as cursor:
        await fill(cursor, accounts(settings), settings.seed_wait)


async def fill(cursor: Cursor, rows: Iterator[Values], wait: float) -> None:
    """Create the table; insert all accounts in one transaction, unless the table has rows.

    Raise TimeoutError if no batch finishes within `wait` seconds. If the database hangs, asyncio
    then needs up to 30 s to close the TLS connection.
    """
    async with asyncio.timeout(wait) as limit:
        # Another seeder may hold the rows. Give up before `wait` is over, and try again.
        await cursor.execute("SET innodb_lock_wait_timeout = %s", (max(int(wait / 2), 1),))
        await cursor.execute(SCHEMA.read_text())
        await cursor.execute("SELECT EXISTS (SELECT 1 FROM accounts)")
        if await cursor.fetchone() == (1,):
            log.info("the table has rows already: nothing to do")
            return
        # asyncmy's autocommit is off: all inserts are one transaction until COMMIT.
        count = 0
        numbered_rows = ((id, *row) for id, row in enumerate(rows, 1))
        while batch := list(itertools.islice(numbered_rows, BATCH)):
            values = list(itertools.chain.from_iterable(batch))
            await cursor.execute(INSERT + ", ".join([ROW] * len(batch)), values)
            limit.reschedule(asyncio.get_running_loop().time() + wait)
            count += len(batch)
            if count % (100 * BATCH) == 0:
                log.info("inserted %d accounts so far", count)
        await cursor.execute("COMMIT")
    log.info("inserted %d accounts", count)


def check_file(file: str) -> None:
    """Read a whole CSV file; exit with a message if it is invalid."""
    for _ in load(file):
        pass


def stop(*_: object) -> None:
    """Exit at once; the database rolls back. Raising SystemExit would print tracebacks."""
    os.write(2, b"Stopped.\n")
    os._exit(1)


def start_log() -> None:
    """Write log records to stdout, one line each."""
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(
        stream=sys.stdout, level=logging.INFO, format="%(asctime)s %(message)s", datefmt=TIME_FORMAT
    )
    logging.getLogger("asyncmy").setLevel(logging.ERROR)  # it warns of IF NOT EXISTS


def main() -> None:
    """Run the seeder; exit with a message if it fails."""
    settings = Settings(os.environ)
    start_log()
    signal.signal(signal.SIGTERM, stop)  # without a handler, process 1 ignores the signal
    if settings.seed_file:
        check_file(settings.seed_file)  # a bad file is an error even if the table has rows
    asyncio.run(seed(settings))


if __name__ == "__main__":
    main()
