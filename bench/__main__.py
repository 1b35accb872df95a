"""Measure the images beside Go and beside a constant page, and write results.md: `make bench`.

The programs take turns, in rounds. They share the machine with the database and the load, so
compare ratios, not rates. A ratio is the median of the ratios within the rounds.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from datetime import datetime
from http.client import HTTPConnection
from pathlib import Path
from statistics import median

from tools import ROOT

COMPOSE = ("docker", "compose", "-f", "docker-compose.yml", "-f", "bench/compose.yml")
# A user's settings do not change the bench, and no healer looks for this label.
SETTINGS = {"ALLOWED_HOSTS": "localhost", "AUTOHEAL_LABEL": "cct-bench", "SEED_ACCOUNTS": "100"}
PROGRAMS = {  # the services and their names
    "app": "cct",
    "ceiling": "aiohttp, a constant",
    "go": "Go",
    "go-shared": "Go, shared queries",
}
Load = dict[str, float]  # figures of one load
Table = list[dict[str, str]]  # rows; the keys are the header


def main() -> None:
    """Build and start the containers, measure everything, remove the containers."""
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2, help="of each load")
    parser.add_argument("--accounts", type=int, nargs="+", default=[100, 10_000, 1_000_000])
    options = parser.parse_args()
    if subprocess.run(["docker", "version"], capture_output=True, check=False).returncode != 0:
        sys.exit("The bench needs a Docker Engine that answers: see `docker version`.")
    began = time.monotonic()
    try:
        run(*COMPOSE, "up", "--build", "--detach", *PROGRAMS, "load")
        check_rows()
        parts = [
            describe_machine(),
            table(measure_loads(options)),
            measure_starts(options.rounds),
            measure_seeding(options.accounts[-1]),
        ]
    finally:
        run(*COMPOSE, "down", "--volumes", "--rmi", "local", "--timeout", "1")
    minutes = (time.monotonic() - began) / 60
    parts += [
        f"Medians of {options.rounds} rounds of {options.seconds} s, in {minutes:.0f} minutes."
    ]
    Path(__file__).with_name("results.md").write_text("\n\n".join(parts) + "\n")


def check_rows() -> None:
    """Exit if the programs do not serve the same rows."""
    pages = [run(*ask(program)).splitlines() for program in PROGRAMS]
    rows = [[line.strip() for line in page if "<tr><td>" in line] for page in pages]
    if any(other != rows[0] for other in rows):
        sys.exit("The programs do not serve the same rows.")


def describe_machine() -> str:
    """Return the machine, the versions, and the machine's load before the bench."""
    info = run("docker", "info", "--format", "{{.NCPU}} cores, Docker Engine {{.ServerVersion}}")
    return (
        f"{info}, {execute('app', 'python', '--version')}, MySQL {sql('SELECT VERSION()')}, "
        f"{execute('load', 'go', 'version').split()[2]}; load average {os.getloadavg()[0]:.1f}. "
        "Programs, database and load share the cores."
    )


def measure_loads(options: argparse.Namespace) -> Table:
    """Load the first page, and any page of tables of several sizes."""
    rows: Table = []
    for connections in (1, 64, 1024):
        rows += compare(f"{connections:,}, the first page", connections, None, options)
    for accounts in options.accounts:
        seed(accounts)
        rows += compare(f"64, any page of {accounts:,} accounts", 64, accounts, options)
    return rows


def compare(
    label: str, connections: int, accounts: int | None, options: argparse.Namespace
) -> Table:
    """Load the programs in turns; return a row for each."""
    loads: dict[str, list[Load]] = {program: [] for program in PROGRAMS}
    if accounts:
        del loads["ceiling"]  # it has one page
    for _ in range(options.rounds):
        for program, measured in loads.items():
            measured.append(measure(program, connections, accounts, options.seconds))
    rows = [describe(label, program, loads) for program in loads]
    print(table(rows), flush=True)
    return rows


def measure(program: str, connections: int, accounts: int | None, seconds: int) -> Load:
    """Load the first page of a program, or any page of so many accounts."""
    wrk = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", "/bench/load.lua"]
    wrk += ["-H", "Host: localhost", "-H", "Accept: text/html", f"http://{program}"]
    wrk += ["--", str(accounts)] if accounts else []
    queries = count_queries()
    cpu = cpu_time(program)
    database = cpu_time("db")
    load: Load = json.loads(execute("load", *wrk).splitlines()[-1])
    requests = max(load["requests"], 1)
    load["cpu"] = (cpu_time(program) - cpu) / requests
    load["database"] = (cpu_time("db") - database) / requests
    load["queries"] = (count_queries() - queries) / requests
    return load


def describe(label: str, program: str, loads: dict[str, list[Load]]) -> dict[str, str]:
    """Return a row: the medians of a program's loads, and its ratios to cct."""

    def middle(figure: str) -> float:
        return median(load[figure] for load in loads[program])

    def ratio(figure: str) -> float:
        pairs = zip(loads[program], loads["app"], strict=True)
        return median(load[figure] / cct[figure] for load, cct in pairs)

    return {
        "connections": label,
        "program": PROGRAMS[program],
        "requests/s": f"{middle('rate'):,.0f}",
        "of cct's": f"{ratio('rate'):.2f}",
        "CPU a request": f"{middle('cpu'):.0f} µs",
        "times cct's": f"{ratio('cpu'):.2f}",
        "CPU of the database": f"{middle('database'):.0f} µs",
        "queries a request": f"{middle('queries'):.3f}",
        "p50": f"{middle('p50'):.2f} ms",
        "p99": f"{middle('p99'):.1f} ms",
        "failed": f"{sum(load['failed'] for load in loads[program])}",
    }


def table(rows: Table) -> str:
    """Return rows as a table in Markdown."""
    header = list(rows[0])
    lines = [header, ["--:"] * len(header)] + [list(row.values()) for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def measure_starts(rounds: int) -> str:
    """Start cct and Go in turns; return how long each takes from its start to its first page."""
    seconds: dict[str, list[float]] = {"app": [], "go": []}
    for _ in range(rounds):
        for program, measured in seconds.items():
            run("docker", "stop", container(program))
            with subprocess.Popen(ask(program), stdout=subprocess.PIPE, text=True) as client:
                run("docker", "start", container(program))
                output, _ = client.communicate(timeout=60)
            measured.append(float(output.split()[-1]) - moment(program, "StartedAt"))
    return (
        f"From its container's start to its first page, cct takes {median(seconds['app']):.2f} s, "
        f"Go {median(seconds['go']):.2f} s."
    )


def measure_seeding(accounts: int) -> str:
    """Compare the seeder with the database's own client."""
    seeder: list[float] = []
    client: list[float] = []
    for _ in range(3):
        seeder.append(seed(accounts))
        client.append(restore())
    ratio = median(own / other for own, other in zip(seeder, client, strict=True))
    return (
        f"For {accounts:,} accounts the seeder takes {median(seeder):.1f} s, MySQL's own client "
        f"{median(client):.1f} s with a dump: ratio {ratio:.2f}."
    )


def seed(accounts: int) -> float:
    """Fill a new table; return how many seconds the seeder's container ran."""
    sql("DROP TABLE accounts")
    up = ("up", "--detach", "--no-deps", "--force-recreate", "seeder")
    run(*COMPOSE, *up, SEED_ACCOUNTS=str(accounts))
    run("docker", "wait", container("seeder"))
    return moment("seeder", "FinishedAt") - moment("seeder", "StartedAt")


def restore() -> float:
    """Replace the table by its dump; return how many seconds the database's client ran."""
    dump = "as-root.sh mysqldump --no-autocommit --set-gtid-purged=OFF cct accounts"
    execute("db", "sh", "-c", f"{dump} >/tmp/dump.sql")
    began = time.monotonic()
    execute("db", "sh", "-c", "as-root.sh mysql cct </tmp/dump.sql; rm /tmp/dump.sql")
    return time.monotonic() - began


def ask(program: str) -> tuple[str, ...]:
    """Return the command that prints the first page of a program, once it answers, and the time."""
    get = "until curl -sfm1 -H 'Host: localhost' -H 'Accept: text/html' $0; do sleep 0.01; done"
    return ("docker", "exec", container("load"), "sh", "-c", f"{get}; date +%s.%N", program)


def sql(statement: str) -> str:
    """Execute SQL as root; return the last value."""
    output = execute("db", "as-root.sh", "mysql", "-N", f"--execute={statement}", "cct")
    return output.rpartition("\t")[2]


def count_queries() -> int:
    """Return how many queries the database has answered."""
    return int(sql("SHOW GLOBAL STATUS LIKE 'Questions'"))


def cpu_time(service: str) -> float:
    """Return the microseconds of CPU that a container has used: only the API tells them."""
    place = run("docker", "context", "inspect", "--format", "{{.Endpoints.docker.Host}}")
    engine = HTTPConnection("localhost")
    engine.sock = socket.socket(socket.AF_UNIX)
    engine.sock.connect(place.removeprefix("unix://"))
    engine.request("GET", f"/containers/{container(service)}/stats?stream=false&one-shot=true")
    nanoseconds: int = json.load(engine.getresponse())["cpu_stats"]["cpu_usage"]["total_usage"]
    engine.close()
    return nanoseconds / 1000


def moment(service: str, field: str) -> float:
    """Return a time of a container's state, in seconds."""
    text = run("docker", "inspect", "--format", f"{{{{.State.{field}}}}}", container(service))
    return datetime.fromisoformat(text).timestamp()


def execute(service: str, *command: str) -> str:
    """Run a command in a container."""
    return run("docker", "exec", container(service), *command)


def container(service: str) -> str:
    """Return the name of a container."""
    return f"cct-bench-{service}-1"


def run(*command: str, **settings: str) -> str:
    """Run a command in the project's folder; return what it prints. Exit if it fails."""
    env = os.environ | SETTINGS | settings
    done = subprocess.run(
        command, cwd=ROOT, env=env, text=True, capture_output=True, timeout=600, check=False
    )
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed: {done.stderr}")
    return done.stdout.strip()


if __name__ == "__main__":
    main()
