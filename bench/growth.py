"""The page and the seeder at growing tables."""

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from bench.programs import PROGRAMS, US, middle, serving
from database import QUERY, Database
from settings import Settings
from tests.database import DatabaseServer, private_database
from tests.helpers import ROOT


def run_seed(database: DatabaseServer, accounts: int) -> tuple[float, float]:
    """Run seed.py and return the seconds it took and its peak memory in MB."""
    began = time.monotonic()
    settings = database.env("seeder") | {"SEED_ACCOUNTS": str(accounts)}
    process = subprocess.Popen(
        [sys.executable, ROOT / "seed.py"], env=os.environ | settings, stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit("The seeder failed.")
    return time.monotonic() - began, usage.ru_maxrss / 1024


async def check_plan(server: DatabaseServer, after: int) -> None:
    """Have the page's query explained; exit with a message if a part of it is not a range on the primary key."""
    reader = Database(Settings.read(os.environ | server.env("app")))
    with patch("database.QUERY", f"EXPLAIN FORMAT=TRADITIONAL {QUERY}"):
        for part in await reader.query(after):
            if not {"range", "PRIMARY"} <= set(map(str, part)):
                raise SystemExit(f"Not a range on the primary key: {part}.")
    await reader.close()


def race(database: DatabaseServer, accounts: int, dump: Path, rounds: int) -> Iterator[float]:
    """Yield how many times as long seed.py takes as the database's own client with a dump of the same rows."""

    def client(program: str, *arguments: str, **files: Any) -> float:
        began = time.monotonic()
        login = ["-h127.0.0.1", f"-P{database.port}", "-uroot", *arguments]
        env = os.environ | {"MYSQL_PWD": database.passwords["root"]}
        subprocess.run([program, *login], env=env, check=True, **files)
        return time.monotonic() - began

    client(
        "mysqldump",
        "--no-create-info",
        "--loose-set-gtid-purged=OFF",
        "cct",
        "accounts",
        stdout=dump.open("wb"),
    )
    for _ in range(rounds):
        database.sql("TRUNCATE cct.accounts")
        own, _ = run_seed(database, accounts)
        database.sql("TRUNCATE cct.accounts")
        yield own / client("mysql", "cct", stdin=dump.open("rb"))


def growth(sizes: list[int], rounds: int, seconds: int) -> Iterator[str]:
    """Yield the table of the sizes, and how the seeder compares at the last one."""
    yield (
        "| accounts | `/` | `/?after=` the middle | any page, 64 connections | its CPU | of the database | queries "
        "| memory | seed.py | its peak memory |"
    )
    yield "|" + "--:|" * 10
    for accounts in sizes:
        with private_database() as database, tempfile.TemporaryDirectory() as name:
            took, peak = run_seed(database, accounts)
            for after in (0, accounts // 2):
                asyncio.run(check_plan(database, after))
            with serving(PROGRAMS[US], database, Path(name)) as served:
                served.page()
                loads = [
                    served.load(1, seconds, f"/?after={after}")
                    for after in (0, accounts // 2) * rounds
                ]
                mixed = middle([served.load(64, seconds, "/", accounts) for _ in range(rounds)])
            first, other = (median(load.p50 for load in loads[i::2]) for i in (0, 1))
            yield (
                f"| {accounts:,} | {first:.2f} ms | {other:.2f} ms | {mixed.rate:,.0f}/s | {mixed.cpu:.0f} µs "
                f"| {mixed.database_cpu:.0f} µs | {mixed.queries:.2f} | {mixed.memory:.0f} MB "
                f"| {took:.1f} s | {peak:.0f} MB |"
            )
            if accounts == sizes[-1]:
                ratios = list(race(database, accounts, Path(name) / "dump.sql", rounds))
    yield f"\nThe seeder takes {median(ratios):.2f} times as long as the database's client with a dump of {accounts:,}."
