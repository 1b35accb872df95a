"""Measure the images beside Go and a constant page, and write results.md.

The programs take turns, in rounds. They share the machine with the database and the load, so
compare ratios, not rates. A ratio is the median of the ratios within the rounds.
"""

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from bench.stack import Load, containers, execute, measure, restore, rows, run, seed, sql, start

RESULTS = Path(__file__).with_name("results.md")
NAMES = {  # of the services
    "app": "cct",
    "ceiling": "aiohttp, a constant",
    "go": "Go",
    "go-shared": "Go, shared queries",
}
CONNECTIONS = (1, 64, 1024)
Table = list[dict[str, str]]  # rows; the keys are the header


def main() -> None:
    """Measure everything."""
    options = read_options()
    if subprocess.run(["docker", "version"], capture_output=True, check=False).returncode != 0:
        sys.exit("The bench needs a Docker Engine that answers. `docker version` tells more.")
    began = time.monotonic()
    with containers():
        check_rows()
        results = [
            f"{describe_machine()} Medians of {options.rounds} rounds of {options.seconds} s.",
            "In the columns with ÷, cct's figure is divided by the program's.",
            "## The first page",
            render(measure_first_page(options)),
            "## Any page, 64 connections",
            render(measure_any_page(options)),
            "## From the start of a container to its first page",
            render(measure_starts(options.rounds)),
            f"## Seeding {options.accounts[-1]:,} accounts",
            render(measure_seeding(options.accounts[-1])),
        ]
    results.append(f"All took {(time.monotonic() - began) / 60:.0f} minutes.")
    RESULTS.write_text("\n\n".join(results) + "\n")


def read_options() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2, help="of each load")
    parser.add_argument("--accounts", type=int, nargs="+", default=[100, 10_000, 1_000_000])
    return parser.parse_args()


def check_rows() -> None:
    """Exit if a program does not serve the rows of cct."""
    expected = rows("app")
    for program in NAMES:
        if rows(program) != expected:
            sys.exit(f"{NAMES[program]} does not serve the same rows.")


def describe_machine() -> str:
    """Return the machine, the versions, and the load before the bench."""
    processor = re.search(r"model name\s*: (.*)", execute("load", "cat", "/proc/cpuinfo"))
    packages = "import aiohttp, asyncmy; print(f'aiohttp {aiohttp.__version__}')"
    return (
        f"{run('docker', 'info', '--format', '{{.NCPU}}')} cores "
        f"({processor[1] if processor else 'unknown'}) for programs, database and load; "
        f"Docker Engine {run('docker', 'version', '--format', '{{.Server.Version}}')}, "
        f"{execute('app', 'python', '--version')}, {execute('app', 'python', '-c', packages)}, "
        f"MySQL {sql('SELECT VERSION()')}, {execute('load', 'go', 'version').split()[2]}; "
        f"load average {execute('load', 'cat', '/proc/loadavg').split()[0]} before the bench."
    )


def measure_first_page(options: argparse.Namespace) -> Table:
    """Load the first page of all programs."""
    table: Table = []
    for connections in CONNECTIONS:
        table += compare("connections", connections, list(NAMES), options, connections)
    return table


def measure_any_page(options: argparse.Namespace) -> Table:
    """Load any page of tables of several sizes. The constant page has no others."""
    table: Table = []
    for accounts in options.accounts:
        seed(accounts)
        table += compare("accounts", accounts, ["app", "go", "go-shared"], options, 64, accounts)
    return table


def compare(
    label: str,
    value: int,
    programs: list[str],
    options: argparse.Namespace,
    connections: int,
    accounts: int | None = None,
) -> Table:
    """Load the programs in turns; return a row for each."""
    loads: dict[str, list[Load]] = {program: [] for program in programs}
    for _ in range(options.rounds):
        for program in programs:
            loads[program].append(measure(program, connections, options.seconds, accounts))
    table: Table = []
    for program in programs:
        row = {label: f"{value:,}", "program": NAMES[program]}
        table.append(row | describe(loads[program], loads["app"]))
        print(*table[-1].values(), sep="\t", flush=True)
    return table


def describe(loads: list[Load], of_cct: list[Load]) -> dict[str, str]:
    """Return the medians of a program's loads."""
    pairs = list(zip(of_cct, loads, strict=True))
    return {
        "requests/s": f"{median(load.rate for load in loads):,.0f}",
        "÷ rate": f"{median(cct.rate / load.rate for cct, load in pairs):.2f}",
        "CPU a request": f"{median(load.cpu for load in loads):.0f} µs",
        "÷ CPU": f"{median(cct.cpu / load.cpu for cct, load in pairs):.2f}",
        "CPU of the database": f"{median(load.database_cpu for load in loads):.0f} µs",
        "queries a request": f"{median(load.queries for load in loads):.3f}",
        "p50": f"{median(load.p50 for load in loads):.2f} ms",
        "p99": f"{median(load.p99 for load in loads):.1f} ms",
        "failed": f"{sum(load.failed for load in loads):.0f}",
    }


def measure_starts(rounds: int) -> Table:
    """Start cct and Go in turns."""
    seconds: dict[str, list[float]] = {"app": [], "go": []}
    for _ in range(rounds):
        for program, measured in seconds.items():
            measured.append(start(program))
    table: Table = []
    for program, measured in seconds.items():
        table.append({"program": NAMES[program], "first page": f"{median(measured):.2f} s"})
    return table


def measure_seeding(accounts: int) -> Table:
    """Fill the table with the seeder and with the database's own client, in turns."""
    pairs: list[tuple[float, float]] = []
    for _ in range(3):
        seeder = seed(accounts)
        pairs.append((seeder, restore()))
    ratio = median(seeder / client for seeder, client in pairs)
    return [
        {
            "seeder": f"{median(seeder for seeder, _ in pairs):.1f} s",
            "the database's own client, from a dump": f"{median(own for _, own in pairs):.1f} s",
            "ratio": f"{ratio:.2f}",
        }
    ]


def render(table: Table) -> str:
    """Return a table in Markdown."""
    header = list(table[0])
    lines = [header, ["--:"] * len(header)]
    lines += [list(row.values()) for row in table]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
