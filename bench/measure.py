"""Load one program, and measure its answers and its costs."""

import json
import os
import subprocess
import time
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import median

import asyncmy

from bench.programs import HERE, Server
from database import PAGE_SIZE, QUERY
from settings import Settings
from tools.private_database import PrivateDatabase


@dataclass
class Load:
    """Figures of one load."""

    rate: float  # requests a second
    p50: float  # milliseconds
    p99: float  # milliseconds
    failed: float  # requests
    size: float  # bytes of an answer with its headers
    cpu: float  # microseconds for a request
    database_cpu: float  # microseconds for a request
    queries: float  # for a request
    memory: float  # megabytes of the program after the load


@dataclass
class Usage:
    """CPU of a program and its database, and queries, since their start."""

    cpu: float  # seconds
    database_cpu: float  # seconds
    queries: int


def measure(
    server: Server, connections: int, seconds: int, path: str = "/", accounts: int | None = None
) -> Load:
    """Load a program with wrk: one path, or random pages of a table with `accounts` rows."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", f"{HERE}/report.lua"]
    command.append(f"http://127.0.0.1:{server.port}{path}")
    if accounts is not None:
        command += ["--", str(accounts)]

    before = read_usage(server)
    done = subprocess.run(command, check=True, text=True, capture_output=True)
    after = read_usage(server)

    report = json.loads(done.stderr)
    requests = max(report["requests"], 1)
    return Load(
        rate=report["requests"] / report["seconds"],
        p50=report["p50"],
        p99=report["p99"],
        failed=report["failed"],
        size=report["bytes"] / requests,
        cpu=(after.cpu - before.cpu) / requests * 1e6,
        database_cpu=(after.database_cpu - before.database_cpu) / requests * 1e6,
        queries=(after.queries - before.queries) / requests,
        memory=read_memory(server.pid),
    )


def middle(loads: list[Load]) -> Load:
    """Return the median of each figure."""
    medians = {}
    for field in fields(Load):
        medians[field.name] = median(getattr(load, field.name) for load in loads)
    return Load(**medians)


async def measure_query(database: PrivateDatabase, seconds: int) -> float:
    """Make the server's query again and again, in a bare loop; return the median in ms."""
    times = []
    arguments = Settings(database.env("app")).connect_arguments()
    async with asyncmy.connect(autocommit=True, stmt_cache_size=8, **arguments) as connection:
        end = time.perf_counter() + seconds
        began = time.perf_counter()
        while began < end:
            async with connection.cursor() as cursor:
                await cursor.execute(QUERY, (0, PAGE_SIZE, 0, PAGE_SIZE + 1))
                await cursor.fetchall()
            now = time.perf_counter()
            times.append((now - began) * 1000)
            began = now
    return median(times)


def read_usage(server: Server) -> Usage:
    """Return the CPU of a program and its database, and the number of queries."""
    database = server.database
    assert database.process
    ((_, queries),) = database.sql("SHOW GLOBAL STATUS LIKE 'Questions'")
    return Usage(read_cpu(server.pid), read_cpu(database.process.pid), int(queries))


def read_cpu(pid: int) -> float:
    """Return the seconds of CPU that a process has used."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    user, system = after_name[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def read_memory(pid: int) -> float:
    """Return the megabytes of memory that a process has now."""
    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20
