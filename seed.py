"""The seeder: wait for the database, create the accounts table, and fill it if it has no rows."""

import asyncio
import os
import signal
import time
from pathlib import Path

import asyncmy
from asyncmy.connection import Connection
from asyncmy.cursors import Cursor
from asyncmy.errors import IntegrityError, MySQLError

from settings import Settings

SCHEMA = Path(__file__).with_name("schema.sql")
INSERT = "INSERT INTO accounts (id, name, email) VALUES (%s, %s, %s)"
BATCH = 1000  # rows in one statement

FIRST_NAMES = (
    "Ada Björn Chloé Dmitri Émilie Fatima Grace Håkon "
    "Inés Jürgen Kateřina Łukasz María Noor Oğuz Wei"
).split()
LAST_NAMES = (
    "Andersson Brontë Çelik Dvořák Esposito García Hopper Itō Jørgensen Kowalski Lovelace Nguyễn 王"
).split()


def account(number: int) -> tuple[int, str, str]:
    """Return the id, name and email of an account. The same number gives the same account."""
    first = FIRST_NAMES[(number - 1) % len(FIRST_NAMES)]
    last = LAST_NAMES[(number - 1) % len(LAST_NAMES)]
    return number, f"{first} {last}", f"account{number}@example.com"


async def seed(settings: Settings) -> str:
    """Create and fill the table, all rows or none; return what was done."""
    connection = await log_in(settings)
    async with connection, connection.cursor() as cursor:
        async with asyncio.timeout(settings.seed_wait):
            # A read-only database refuses even CREATE TABLE IF NOT EXISTS.
            if not await exists(cursor, "SHOW TABLES LIKE 'accounts'"):
                await cursor.execute(SCHEMA.read_text())
            if await exists(cursor, "SELECT 1 FROM accounts LIMIT 1"):
                return "the table has rows already: nothing to do"
        try:
            await fill(cursor, settings)
        except IntegrityError:  # on Swarm two seeders can run at once; only one can insert id 1
            return "another seeder has filled the table: nothing to do"
    return f"inserted {settings.seed_accounts} accounts"


async def log_in(settings: Settings) -> Connection:
    """Connect, and try again for SEED_WAIT seconds while the database does not answer."""
    deadline = time.monotonic() + settings.seed_wait
    while True:
        try:
            async with asyncio.timeout(settings.db_timeout):
                return await asyncmy.connect(**settings.connect_arguments())
        except (MySQLError, OSError) as error:  # TimeoutError is an OSError
            if isinstance(error, MySQLError) and error.sqlstate:
                raise  # the database has answered with a refusal: waiting does not help
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.5)


async def exists(cursor: Cursor, query: str) -> bool:
    """Return whether a query finds a row."""
    await cursor.execute(query)
    return await cursor.fetchone() is not None


async def fill(cursor: Cursor, settings: Settings) -> None:
    """Insert all accounts in one transaction; raise TimeoutError if the database falls silent."""
    await cursor.execute("START TRANSACTION")
    for first in range(1, settings.seed_accounts + 1, BATCH):
        last = min(first + BATCH - 1, settings.seed_accounts)
        async with asyncio.timeout(settings.seed_wait):
            await cursor.executemany(INSERT, [account(number) for number in range(first, last + 1)])
    async with asyncio.timeout(settings.seed_wait):
        await cursor.execute("COMMIT")


def stop(*_: object) -> None:
    """Exit at once: asyncio could swallow SystemExit. The database rolls back."""
    os.write(2, b"Stopped. The database keeps all accounts or none.\n")
    os._exit(1)


def main() -> None:
    """Run the seeder; exit with a message if it fails."""
    settings = Settings(os.environ)
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)  # as process 1 of a container, Python would ignore it
    try:
        print(asyncio.run(seed(settings)))
    except (MySQLError, OSError, RuntimeError) as error:  # RuntimeError: a login needs TLS
        place = f"The database at {settings.db_host}:{settings.db_port}"
        hint = "In a container, localhost is the container: use host.docker.internal."
        note = f" {hint}" if settings.db_host in ("localhost", "127.0.0.1") else ""
        raise SystemExit(f"{place} could not be seeded: {error!r}.{note}") from None


if __name__ == "__main__":
    main()
