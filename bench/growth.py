"""Measure the page and the seeder with growing tables."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median

from bench.measure import measure, middle, read_memory
from bench.programs import CCT, find_client, serving
from seed import generate
from tools import ROOT
from tools.private_database import PrivateDatabase

ROWS = 20_000  # in one statement of the SQL for the client: a megabyte, as in a dump


@dataclass
class Seeding:
    """Figures of one run of the seeder."""

    seconds: float
    memory: float  # megabytes at most


def seed(database: PrivateDatabase, accounts: int) -> Seeding:
    """Fill a new table with seed.py."""
    database.sql("DROP TABLE IF EXISTS cct.accounts")
    settings = database.env("seeder") | {"SEED_ACCOUNTS": str(accounts)}
    command = [sys.executable, f"{ROOT}/seed.py"]
    memory = 0.0
    began = time.monotonic()
    process = subprocess.Popen(command, env=os.environ | settings, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        memory = max(memory, read_memory(process.pid))
        time.sleep(0.01)
    if process.returncode != 0:
        raise SystemExit("The seeder failed.")
    return Seeding(time.monotonic() - began, memory)


def measure_size(
    database: PrivateDatabase, accounts: int, rounds: int, seconds: int
) -> dict[str, str]:
    """Fill the table, load the server with three kinds of requests, and return a row of results."""
    seeding = seed(database, accounts)
    first_page = []
    middle_page = []
    any_page = []
    with serving(CCT, database) as server:
        server.page()
        for _ in range(rounds):
            first_page.append(measure(server, 1, seconds))
            middle_page.append(measure(server, 1, seconds, f"/?after={accounts // 2}"))
            any_page.append(measure(server, 64, seconds, accounts=accounts))
    mixed = middle(any_page)
    return {
        "accounts": f"{accounts:,}",
        "p50, first page": f"{middle(first_page).p50:.2f} ms",
        "p50, page in the middle": f"{middle(middle_page).p50:.2f} ms",
        "any page, 64 connections": f"{mixed.rate:,.0f}/s",
        "CPU a request": f"{mixed.cpu:.0f} µs",
        "CPU of the database": f"{mixed.database_cpu:.0f} µs",
        "queries a request": f"{mixed.queries:.2f}",
        "memory": f"{mixed.memory:.0f} MB",
        "seed.py": f"{seeding.seconds:.1f} s",
        "its memory": f"{seeding.memory:.0f} MB",
    }


def race(database: PrivateDatabase, accounts: int, rounds: int) -> float:
    """Return the time of the seeder, divided by the time of the database's own client."""
    sql = database.folder / "accounts.sql"
    write_sql(sql, accounts)
    ratios = []
    for _ in range(rounds):
        seeding = seed(database, accounts)
        database.sql("TRUNCATE cct.accounts")
        ratios.append(seeding.seconds / execute(database, sql))
    return median(ratios)


def write_sql(sql: Path, accounts: int) -> None:
    """Write the seeder's rows as SQL, in one transaction."""
    numbered = enumerate(generate(accounts), 1)
    with sql.open("w") as file:
        file.write("SET autocommit = 0;\n")
        while batch := list(islice(numbered, ROWS)):
            rows = ",".join(f"({id},'{name}','{email}')" for id, (name, email) in batch)
            file.write(f"INSERT INTO accounts VALUES {rows};\n")
        file.write("COMMIT;\n")


def execute(database: PrivateDatabase, sql: Path) -> float:
    """Execute a file with the database's own client; return the seconds it took."""
    client = find_client()
    assert client
    command = [client, "-h127.0.0.1", f"-P{database.port}", "-uroot"]
    command += ["--default-character-set=utf8mb4", "cct"]
    password = {"MYSQL_PWD": database.passwords["root"]}
    began = time.monotonic()
    with sql.open("rb") as file:
        subprocess.run(command, env=os.environ | password, stdin=file, check=True)
    return time.monotonic() - began
