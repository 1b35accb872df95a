"""Measure the server beside its ceiling and its peers, at growing tables, and the seeder: `make bench`.

All on loopback, one process each, one after the other in rounds; the results are medians over the rounds.
"""

import argparse
import asyncio
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import seed
import server
from tests.local import ROOT, Database, free_port, private_database, run, server_program, stop

HERE = Path(__file__).parent
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # gunicorn and uvicorn stand beside python
US, CEILING = "cct", "aiohttp, a constant"
PROGRAMS = {
    US: "python ../server.py",
    CEILING: "python ceiling.py",
    "Node + Express + mysql2": "node express_peer.js",
    "FastAPI + uvicorn + asyncmy": "uvicorn fastapi_peer:app --port {port} --no-access-log",
    "Flask + gunicorn + PyMySQL": "gunicorn flask_peer:app -b 127.0.0.1:{port} --threads 8 --worker-connections 2000",
}
CONNECTIONS = (1, 64, 1024)


class Load(NamedTuple):
    """What came of a load: requests a second, latencies in ms, failed requests, memory in MB."""

    rate: float
    p50: float
    p99: float
    failed: float
    memory: float


Loads = dict[tuple[str, int], list[Load]]  # by program and connections, one for each round


class Server:
    """A program that serves the page."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process, self.port = process, port

    def get(self) -> str:
        """Return the page; SystemExit where there is none within 10 s."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            client = HTTPConnection("127.0.0.1", self.port, timeout=5)
            try:
                client.request("GET", "/")
                return client.getresponse().read().decode()
            except OSError:
                time.sleep(0.1)
            finally:
                client.close()
        raise SystemExit(f"{self.process.args!r} does not answer.")

    def load(self, connections: int, seconds: int, path: str = "/") -> Load:
        """Load it with wrk."""
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", f"{HERE}/report.lua"]
        url = f"http://127.0.0.1:{self.port}{path}"
        report = subprocess.run([*command, url], check=True, text=True, capture_output=True).stderr
        kilobytes = run("ps", "-o", "rss=", "-s", str(self.process.pid), cwd=HERE)  # gunicorn is two processes
        rate, p50, p99, failed = map(float, report.split())
        return Load(rate, p50, p99, failed, sum(map(int, kilobytes.split())) / 1024)


@contextmanager
def serving(name: str, database: Database, directory: Path) -> Iterator[Server]:
    """Give a program that serves, its log in a file."""
    port = free_port()
    settings = {"HOST": "127.0.0.1", "PORT": str(port), "PAGES": str(directory), "NODE_ENV": "production"}
    process = subprocess.Popen(
        PROGRAMS[name].format(port=port).split(),
        cwd=HERE,
        env=os.environ | database.env("app") | settings | {"PATH": PATH, "PYTHONPATH": str(ROOT)},
        stdout=(directory / f"{name}.log").open("wb"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield Server(process, port)
    finally:
        stop(process)


def write_pages(page: str, directory: Path) -> None:
    """Write the page for the ceiling, and as a template for the peers; SystemExit where it lacks the accounts."""
    row = '<tr><td>{}</td><th scope="row">{}</th><td>{}</td></tr>'.format
    rows = "\n".join(row(id, *account) for id, account in enumerate(seed.generate(server.PAGE_SIZE), 1))
    if page.count(rows) != 1:
        raise SystemExit("The server does not show the first accounts.")
    loop = '{% for id, name, email in accounts %}{{ "\\n" if not loop.first }}' + row(
        "{{ id }}", "{{ name }}", "{{ email }}"
    )
    head, tail = page.split(rows)
    (directory / "page.txt").write_text(page)
    (directory / "page.html").write_text(
        f"{{% raw %}}{head}{{% endraw %}}{loop}{{% endfor %}}{{% raw %}}{tail}{{% endraw %}}"
    )


def compare(rounds: int, seconds: int) -> Loads:
    """Load each program at each number of connections, in rounds."""
    loads: Loads = {}
    with private_database() as database, tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        run_seed(database, 100)
        for _ in range(rounds):
            for program, command in PROGRAMS.items():
                if not shutil.which(command.split()[0], path=PATH):
                    print(f"{program} is skipped: there is no {command.split()[0]}.", flush=True)
                    continue
                with serving(program, database, directory) as served:
                    if program == US:
                        write_pages(served.get(), directory)
                    if served.get() != (directory / "page.txt").read_text():
                        raise SystemExit(f"{program} does not serve the same page.")
                    served.load(64, 1)
                    for connections in CONNECTIONS:
                        load = served.load(connections, seconds)
                        loads.setdefault((program, connections), []).append(load)
                        print(program, connections, load, flush=True)
    return loads


def ratio(loads: Loads, over: tuple[str, int], under: tuple[str, int], field: int = 0) -> float:
    """Return the median of the ratios within the rounds, of the rate or another field."""
    return median(a[field] / b[field] for a, b in zip(loads[over], loads[under], strict=True))


def comparison(loads: Loads) -> Iterator[str]:
    """Yield the table of the programs, and the ratios that count."""
    yield "| | connections | requests/s | of the ceiling | p50 | p99 | failed | memory |"
    yield "|---|--:|--:|--:|--:|--:|--:|--:|"
    for (program, connections), rounds in sorted(loads.items(), key=lambda item: item[0][1]):
        middle = Load(*map(median, zip(*rounds, strict=True)))
        share = ratio(loads, (program, connections), (CEILING, connections))
        yield (
            f"| {program} | {connections:,} | {middle.rate:,.0f} | {share:.2f} | {middle.p50:.2f} ms "
            f"| {middle.p99:.2f} ms | {sum(load.failed for load in rounds):.0f} | {middle.memory:.0f} MB |"
        )
    peers = {program for program, _ in loads} - {US, CEILING}
    yield (
        f"\nAt 64 connections cct reaches {ratio(loads, (US, 64), (CEILING, 64)):.2f} of the ceiling and "
        f"{min(ratio(loads, (US, 64), (peer, 64)) for peer in peers):.1f} times the best peer, its p99 is "
        f"{ratio(loads, (US, 64), (CEILING, 64), 2):.1f} times the ceiling's; at 1,024 connections it keeps "
        f"{ratio(loads, (US, 1024), (US, 64)):.2f} of that rate."
    )


def chart(loads: Loads) -> str:
    """Return the rates as bars, in SVG; its grey reads on light and on dark."""
    bars, y = [], 0
    highest = max(load.rate for rounds in loads.values() for load in rounds)
    for connections in CONNECTIONS:
        y += 34
        bars.append(f'<text y="{y}" font-weight="bold">{connections:,} connection{"s" * (connections > 1)}</text>')
        for program in PROGRAMS:
            if rounds := loads.get((program, connections)):
                y += 22
                rate = median(load.rate for load in rounds)
                width = 400 * rate / highest
                colour = {US: "#2da44e", CEILING: "#4c8eda"}.get(program, "#999")
                bars.append(
                    f'<text x="205" y="{y}" text-anchor="end">{program}</text>'
                    f'<rect x="215" y="{y - 12}" width="{width:.1f}" height="15" fill="{colour}"/>'
                    f'<text x="{width + 221:.1f}" y="{y}">{rate:,.0f}</text>'
                )
    style = 'font-family="system-ui, sans-serif" font-size="13" fill="#777"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 680 {y + 12}" {style}>\n'
        f"<title>Requests a second</title>\n{chr(10).join(bars)}\n</svg>\n"
    )


def run_seed(database: Database, accounts: int) -> tuple[float, float]:
    """Run seed.py and return the seconds it took and its peak memory in MB."""
    began = time.monotonic()
    settings = database.env("seeder") | {"SEED_ACCOUNTS": str(accounts)}
    process = subprocess.Popen([sys.executable, ROOT / "seed.py"], env=os.environ | settings, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit("The seeder failed.")
    return time.monotonic() - began, usage.ru_maxrss / 1024


class Explained(server.Database):
    """A database that explains a query instead of making it."""

    async def query(self, sql: str, *parameters: int) -> tuple[tuple[Any, ...], ...]:
        """Return no rows; SystemExit where a part of the query is not a range on the primary key."""
        for part in await super().query(f"EXPLAIN FORMAT=TRADITIONAL {sql}", *parameters):
            if not {"range", "PRIMARY"} <= set(map(str, part)):
                raise SystemExit(f"Not a range on the primary key: {part}.")
        return ()


async def check_plan(database: Database, after: int) -> None:
    """Have the page's query explained."""
    settings = server.Settings.read(os.environ | database.env("app"))
    app = server.make_app(settings)
    app[server.DATABASE] = explained = Explained(settings.database)
    await server.read_page(app, after)
    explained.pool.terminate()


def growth(sizes: list[int], rounds: int, seconds: int) -> Iterator[str]:
    """Yield the table of the sizes, and how the seeder compares at the last one."""
    yield "| accounts | `/` | `/?after=` the middle | memory | seed.py | its peak memory |"
    yield "|--:|--:|--:|--:|--:|--:|"
    for accounts in sizes:
        with private_database() as database, tempfile.TemporaryDirectory() as name:
            took, peak = run_seed(database, accounts)
            for after in (0, accounts // 2):
                asyncio.run(check_plan(database, after))
            with serving(US, database, Path(name)) as served:
                served.get()
                loads = [served.load(1, seconds, f"/?after={after}") for after in (0, accounts // 2) * rounds]
            first, middle = (median(load.p50 for load in loads[i::2]) for i in (0, 1))
            yield (
                f"| {accounts:,} | {first:.2f} ms | {middle:.2f} ms | {loads[-1].memory:.0f} MB "
                f"| {took:.1f} s | {peak:.0f} MB |"
            )
            if accounts == sizes[-1]:
                ratios = list(race(database, accounts, Path(name) / "dump.sql", rounds))
    yield f"\nThe seeder takes {median(ratios):.2f} times as long as the database's client with a dump of {accounts:,}."


def race(database: Database, accounts: int, dump: Path, rounds: int) -> Iterator[float]:
    """Yield how many times as long seed.py takes as the database's own client with a dump of the same rows."""

    def client(program: str, *arguments: str, **files: Any) -> float:
        began = time.monotonic()
        login = ["-h127.0.0.1", f"-P{database.port}", "-uroot", *arguments]
        env = os.environ | {"MYSQL_PWD": database.passwords["root"]}
        subprocess.run([program, *login], env=env, check=True, **files)
        return time.monotonic() - began

    client("mysqldump", "--no-create-info", "--loose-set-gtid-purged=OFF", "cct", "accounts", stdout=dump.open("wb"))
    for _ in range(rounds):
        client("mysql", "-e", "TRUNCATE accounts", "cct")
        own, _ = run_seed(database, accounts)
        client("mysql", "-e", "TRUNCATE accounts", "cct")
        yield own / client("mysql", "cct", stdin=dump.open("rb"))


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
    parser = argparse.ArgumentParser(prog="python -m bench", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=10, help="of each load")
    parser.add_argument("--accounts", type=int, nargs="+", default=[100, 10_000, 1_000_000])
    arguments = parser.parse_args()
    server.start_log()
    loads = compare(arguments.rounds, arguments.seconds)
    (HERE / "results.svg").write_text(chart(loads))
    sizes = growth(arguments.accounts, arguments.rounds, arguments.seconds)
    (HERE / "results.md").write_text("\n".join([machine(arguments), "", *comparison(loads), "", *sizes]) + "\n")


if __name__ == "__main__":
    main()
