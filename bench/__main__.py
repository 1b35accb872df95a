"""Measure the server beside its ceiling, its floor and Go; measure growing tables and the seeder.

Each program runs in one process on loopback. The programs take turns, in rounds. The database, the
load and the program share the machine, so compare ratios, not rates.
"""

import argparse
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import uvloop

from bench.growth import measure_size, race, seed
from bench.measure import Load, measure, measure_query, middle
from bench.programs import (
    CCT,
    CEILING,
    HERE,
    Program,
    find_programs,
    page_file,
    require_tools,
    serving,
)
from seed import start_log
from tools.private_database import PrivateDatabase, private_database

CONNECTIONS = (1, 64, 1024)


@dataclass(frozen=True)
class Case:
    """A program, and the connections of its clients."""

    program: Program
    connections: int


Loads = dict[Case, list[Load]]  # one load for each round


def main() -> None:
    """Measure everything, and write bench/results.md."""
    options = read_options()
    require_tools()
    start_log()
    with private_database() as database:
        machine = describe_machine(database)
        loads, floor = compare(database, options.rounds, options.seconds)
        sizes = [
            measure_size(database, accounts, options.rounds, options.seconds)
            for accounts in options.accounts
        ]
        largest = options.accounts[-1]
        ratio = race(database, largest, options.rounds)
    results = [
        f"{machine}; medians of {options.rounds} rounds of {options.seconds} s.",
        table([row(case, loads) for case in loads]),
        f"The query alone, in a bare loop of asyncmy, takes {floor:.2f} ms.",
        table(sizes),
        f"The seeder takes {ratio:.2f} times as long as the database's own client with the same "
        f"{largest:,} rows as SQL.",
    ]
    (HERE / "results.md").write_text("\n\n".join(results) + "\n")


def read_options() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3, help="of each load")
    parser.add_argument("--accounts", type=int, nargs="+", default=[100, 10_000, 1_000_000])
    return parser.parse_args()


def compare(database: PrivateDatabase, rounds: int, seconds: int) -> tuple[Loads, float]:
    """Load the programs in rounds; return the loads, and the milliseconds of the query alone."""
    seed(database, 100)
    programs = find_programs(database.folder)
    loads: Loads = {}
    for connections in CONNECTIONS:
        for program in programs:
            loads[Case(program, connections)] = []
    queries = []
    for _ in range(rounds):
        queries.append(uvloop.run(measure_query(database, seconds)))
        for program in programs:
            compare_program(program, database, seconds, loads)
    return loads, median(queries)


def compare_program(
    program: Program, database: PrivateDatabase, seconds: int, loads: Loads
) -> None:
    """Load a program at each number of connections."""
    with serving(program, database) as server:
        page = server.page()
        if program == CCT:
            page_file(database).write_text(page)
        if page != page_file(database).read_text():
            raise SystemExit(f"{program.name} does not serve the same page.")
        measure(server, connections=64, seconds=1)  # to warm up
        for connections in CONNECTIONS:
            load = measure(server, connections, seconds)
            loads[Case(program, connections)].append(load)
            print(f"{program.name}, {connections} connections: {load.rate:,.0f}/s", flush=True)


def row(case: Case, loads: Loads) -> dict[str, str]:
    """Return a row of the comparison."""
    load = middle(loads[case])
    failed = sum(load.failed for load in loads[case])
    return {
        "program": case.program.name,
        "connections": f"{case.connections:,}",
        "requests/s": f"{load.rate:,.0f}",
        "of the ceiling's": f"{ratio_to_ceiling('rate', case, loads):.2f}",
        "CPU a request": f"{load.cpu:.0f} µs",
        "times the ceiling's": f"{ratio_to_ceiling('cpu', case, loads):.2f}",
        "CPU of the database": f"{load.database_cpu:.0f} µs",
        "queries a request": f"{load.queries:.3f}",
        "bytes": f"{load.size:,.0f}",
        "p50": f"{load.p50:.2f} ms",
        "p99": f"{load.p99:.2f} ms",
        "failed": f"{failed:.0f}",
        "memory": f"{load.memory:.0f} MB",
    }


def ratio_to_ceiling(field: str, case: Case, loads: Loads) -> float:
    """Return the median of the ratios within the rounds."""
    ceilings = loads[Case(CEILING, case.connections)]
    ratios: list[float] = []
    for load, ceiling in zip(loads[case], ceilings, strict=True):
        ratios.append(getattr(load, field) / getattr(ceiling, field))
    return median(ratios)


def table(rows: list[dict[str, str]]) -> str:
    """Return rows as a table in Markdown. The keys of a row are the header."""
    header = list(rows[0])
    rule = ["---"] + ["--:"] * (len(header) - 1)
    lines = [header, rule] + [list(row.values()) for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def describe_machine(database: PrivateDatabase) -> str:
    """Return the machine, the versions, and the machine's load before the bench."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    processor = f" ({model[1]})" if model else ""
    ((version,),) = database.sql("SELECT VERSION()")
    return (
        f"{os.cpu_count()} cores{processor} for server, database and load; {platform.system()}, "
        f"Python {platform.python_version()}, database {version}, "
        f"load average {os.getloadavg()[0]:.1f} before the first load"
    )


if __name__ == "__main__":
    main()
