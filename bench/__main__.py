"""Measure the server beside its ceiling, its floor and its peers, at growing tables, and the seeder: `make bench`.

All on loopback, one process each, one after the other in rounds; the results are medians over the rounds.
"""

import argparse
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles

import asyncmy
import uvloop

import seed
from bench.growth import growth, run_seed
from bench.instructions import instructions
from bench.programs import (
    CEILING,
    GO,
    HERE,
    PATH,
    PROGRAMS,
    US,
    Load,
    build_go,
    middle,
    serving,
    usage,
)
from database import PAGE_SIZE, QUERY
from settings import Settings, start_log
from tests.database import DatabaseServer, private_database, run, server_program

CONNECTIONS = (1, 64, 1024)
FLOOR = "asyncmy, the query alone"

Loads = dict[tuple[str, int], list[Load]]  # by program and connections, one for each round


def write_pages(page: str, directory: Path) -> None:
    """Write the page for the ceiling, and as a template for the peers; exit with a message if it lacks the accounts."""
    row = '<tr><td>{}</td><th scope="row">{}</th><td>{}</td></tr>'.format
    rows = "\n".join(row(id, *account) for id, account in enumerate(seed.generate(PAGE_SIZE), 1))
    if page.count(rows) != 1:
        raise SystemExit("The server does not show the first accounts.")
    head, tail = page.split(rows)
    loop = '{% for id, name, email in accounts %}{{ "\\n" if not loop.first }}' + row(
        "{{ id }}", "{{ name }}", "{{ email }}"
    )
    template = f"{{% raw %}}{head}{{% endraw %}}{loop}{{% endfor %}}{{% raw %}}{tail}{{% endraw %}}"
    for name, text in (
        ("page.txt", page),
        ("page.html", template),
        ("head.html", head),
        ("tail.html", tail),
    ):
        (directory / name).write_text(text)


async def make_queries(database: DatabaseServer, seconds: int) -> list[float]:
    """Make the server's query again and again; return the milliseconds of each."""
    times = []
    settings = Settings.read(os.environ | database.env("app"))
    async with asyncmy.connect(
        autocommit=True, stmt_cache_size=8, **settings.connect_arguments()
    ) as connection:
        end = time.perf_counter() + seconds
        while (began := time.perf_counter()) < end:
            async with connection.cursor() as cursor:
                await cursor.execute(QUERY, (0, PAGE_SIZE, 0, PAGE_SIZE + 1))
                await cursor.fetchall()
            times.append((time.perf_counter() - began) * 1e3)
    return times


def measure_floor(database: DatabaseServer, seconds: int) -> Load:
    """Return what the query takes with nothing around it."""
    began, before = time.process_time(), usage(os.getpid(), database)
    times = uvloop.run(make_queries(database, seconds))
    cpu, after = time.process_time() - began, usage(os.getpid(), database)
    n = len(times)
    database_cpu = (after.database_cpu - before.database_cpu) / n * 1e6
    queries = (after.queries - before.queries) / n
    return Load(
        n / seconds,
        median(times),
        quantiles(times, n=100)[98],
        0,
        0,
        cpu / n * 1e6,
        database_cpu,
        queries,
        0,
    )


def compare(rounds: int, seconds: int, database: DatabaseServer, directory: Path) -> Loads:
    """Load each program at each number of connections, in rounds."""
    loads: Loads = {}
    run_seed(database, 100)
    build_go(directory)
    for _ in range(rounds):
        loads.setdefault((FLOOR, 1), []).append(measure_floor(database, seconds))
        for program, command in PROGRAMS.items():
            if not shutil.which(command.format(pages=directory, port=0).split()[0], path=PATH):
                print(f"{program} is skipped: it is not installed.", flush=True)
                continue
            with serving(command, database, directory) as served:
                if program == US:
                    write_pages(served.page(), directory)
                if served.page() != (directory / "page.txt").read_text():
                    raise SystemExit(f"{program} does not serve the same page.")
                served.load(64, 1)
                for connections in CONNECTIONS:
                    load = served.load(connections, seconds)
                    loads.setdefault((program, connections), []).append(load)
                    print(program, connections, load, flush=True)
    return loads


def ratio(loads: Loads, over: tuple[str, int], under: tuple[str, int], field: str) -> float:
    """Return the median of the ratios within the rounds."""
    pairs = zip(loads[over], loads[under], strict=True)
    ratios: list[float] = [getattr(a, field) / getattr(b, field) for a, b in pairs]
    return median(ratios)


def comparison(loads: Loads) -> Iterator[str]:
    """Yield the table of the programs."""
    yield (
        "| | connections | requests/s | of the ceiling | CPU a request | of the ceiling's | CPU of the database "
        "| queries a request | bytes | p50 | p99 | failed | memory |"
    )
    yield "|---|" + "--:|" * 12
    for (program, connections), rounds in sorted(loads.items(), key=lambda item: item[0][1]):
        load = middle(rounds)
        key, ceiling = (program, connections), (CEILING, connections)
        yield (
            f"| {program} | {connections:,} | {load.rate:,.0f} | {ratio(loads, key, ceiling, 'rate'):.2f} "
            f"| {load.cpu:.0f} µs | {ratio(loads, key, ceiling, 'cpu'):.2f} "
            f"| {load.database_cpu:.0f} µs | {load.queries:.2f} | {load.size:,.0f} "
            f"| {load.p50:.2f} ms | {load.p99:.2f} ms | {sum(one.failed for one in rounds):.0f} "
            f"| {load.memory:.0f} MB |"
        )


def goals(loads: Loads) -> Iterator[str]:
    """Yield the table of the goals; each ratio is the median of those within the rounds."""
    yield "| goal | measured |"
    yield "|---|--:|"
    for goal, over, under, field in (
        (
            "64 connections: CPU a request at most 1.15 times the ceiling's",
            (US, 64),
            (CEILING, 64),
            "cpu",
        ),
        ("64 connections: requests/s at least 3 times Go's", (US, 64), (GO, 64), "rate"),
        (
            "1 connection: p50 at most 1.25 times that of the query alone",
            (US, 1),
            (FLOOR, 1),
            "p50",
        ),
        (
            "1,024 connections: requests/s at least 0.9 of the ceiling's",
            (US, 1024),
            (CEILING, 1024),
            "rate",
        ),
        ("64 connections: p99 at most 1.5 times the ceiling's", (US, 64), (CEILING, 64), "p99"),
        (
            "1,024 connections: p99 at most 1.5 times the ceiling's",
            (US, 1024),
            (CEILING, 1024),
            "p99",
        ),
    ):
        if under in loads:
            yield f"| {goal} | {ratio(loads, over, under, field):.2f} |"
    yield f"| no failed request | {sum(load.failed for count in CONNECTIONS for load in loads[US, count]):.0f} |"


def chart(loads: Loads) -> str:
    """Return the rates as bars, in SVG; its grey reads on light and on dark."""
    bars, y = [], 0
    highest = max(load.rate for rounds in loads.values() for load in rounds)
    for connections in CONNECTIONS:
        y += 34
        bars.append(
            f'<text y="{y}" font-weight="bold">{connections:,} connection{"s" * (connections > 1)}</text>'
        )
        for program in PROGRAMS:
            if rounds := loads.get((program, connections)):
                y += 22
                rate, cpu, size = (
                    median(getattr(load, field) for load in rounds)
                    for field in ("rate", "cpu", "size")
                )
                width = 300 * rate / highest
                colour = {US: "#2da44e", CEILING: "#4c8eda"}.get(program, "#999")
                bars.append(
                    f'<text x="205" y="{y}" text-anchor="end">{program}</text>'
                    f'<rect x="215" y="{y - 12}" width="{width:.1f}" height="15" fill="{colour}"/>'
                    f'<text x="{width + 221:.1f}" y="{y}">{rate:,.0f}/s, {cpu:,.0f} µs, {size / 1000:.1f} kB</text>'
                )
    style = 'font-family="system-ui, sans-serif" font-size="13" fill="#777"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 690 {y + 12}" {style}>\n'
        f"<title>Requests a second, CPU a request, size of an answer</title>\n{chr(10).join(bars)}\n</svg>\n"
    )


def machine(arguments: argparse.Namespace) -> str:
    """Return what the results come from."""
    info = Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*: (.*)", info)
    database = run(server_program(), "--version", cwd=HERE).partition("Ver ")[2].split()[0]
    return (
        f"{os.cpu_count()} cores ({model[1] if model else platform.machine()}) for server, database and load; "
        f"{platform.system()}, Python {platform.python_version()}, "
        f"{'MariaDB' if 'MariaDB' in database else 'MySQL'} {database}; "
        f"medians of {arguments.rounds} rounds of {arguments.seconds} s; one process each."
    )


def main() -> None:
    """Write bench/results.md and bench/results.svg."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3, help="of each load")
    parser.add_argument("--accounts", type=int, nargs="+", default=[100, 10_000, 1_000_000])
    arguments = parser.parse_args()
    start_log()
    with private_database() as database, tempfile.TemporaryDirectory() as name:
        loads = compare(arguments.rounds, arguments.seconds, database, Path(name))
        parts = list(instructions(database, Path(name)))
    (HERE / "results.svg").write_text(chart(loads))
    sizes = growth(arguments.accounts, min(arguments.rounds, 3), arguments.seconds)
    tables = (comparison(loads), goals(loads), parts, sizes)
    (HERE / "results.md").write_text(
        "\n\n".join([machine(arguments), *map("\n".join, tables)]) + "\n"
    )


if __name__ == "__main__":
    main()
