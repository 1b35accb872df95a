"""Run the containers of the bench, load a program, and read what that cost."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from http.client import HTTPConnection

from tools import ROOT

FILES = ("-f", "docker-compose.yml", "-f", "bench/compose.yml")
# No healer looks for this label. The Host header is localhost, whatever ALLOWED_HOSTS is outside.
SETTINGS = {"AUTOHEAL_LABEL": "cct-bench", "ALLOWED_HOSTS": "localhost", "SEED_ACCOUNTS": "100"}
SERVICES = ("db", "seeder", "app", "ceiling", "go", "go-shared", "load")
TIME_LIMIT = 600  # seconds, for one command

# Ask a program for its page until it answers; print the time and the page.
ASK = """
import sys, time, urllib.request as client
headers = {"Host": "localhost", "Accept": "text/html"}
while True:
    try:
        page = client.urlopen(client.Request(f"http://{sys.argv[1]}", headers=headers), timeout=1)
        print(time.time(), page.read().decode())
        break
    except OSError:
        time.sleep(0.005)
"""


@dataclass
class Load:
    """Figures of one load."""

    rate: float  # requests a second
    p50: float  # milliseconds
    p99: float  # milliseconds
    failed: float  # requests
    cpu: float  # microseconds a request
    database_cpu: float  # microseconds a request
    queries: float  # a request


def run(*command: str, **settings: str) -> str:
    """Run a command in the project's folder; return what it prints. Exit if the command fails."""
    env = os.environ | SETTINGS | settings
    done = subprocess.run(
        command, cwd=ROOT, env=env, text=True, capture_output=True, timeout=TIME_LIMIT, check=False
    )
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout.strip()


def compose(*arguments: str, **settings: str) -> str:
    """Run Docker Compose with the containers of the bench."""
    return run("docker", "compose", *FILES, *arguments, **settings)


def container(service: str) -> str:
    """Return the name of a container."""
    return f"cct-bench-{service}-1"


def execute(service: str, *command: str) -> str:
    """Run a command in a container."""
    return run("docker", "exec", container(service), *command)


def sql(statement: str) -> str:
    """Execute SQL as root; return the last value."""
    output = execute("db", "as-root.sh", "mysql", "-N", f"--execute={statement}", "cct")
    return output.split("\t")[-1]


@contextmanager
def containers() -> Iterator[None]:
    """Build and start everything; remove everything at the end."""
    compose("build", "--quiet", *SERVICES)
    try:
        compose("up", "--detach", *SERVICES)
        yield
    finally:
        compose("down", "--volumes", "--rmi", "local", "--timeout", "1")


def ask(program: str) -> tuple[float, str]:
    """Return when a program gave its first page, and the page."""
    when, _, page = execute("load", "python", "-c", ASK, program).partition(" ")
    return float(when), page


def rows(program: str) -> str:
    """Return the rows of the page: what stands around them tells the time."""
    _, page = ask(program)
    return page[page.index("<tr><td>") : page.rindex("</tr>")]


def measure(program: str, connections: int, seconds: int, accounts: int | None = None) -> Load:
    """Load the page of a program, or any page of so many accounts."""
    wrk = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", "/load.lua"]
    wrk += ["-H", "Host: localhost", "-H", "Accept: text/html", f"http://{program}/"]
    if accounts is not None:
        wrk += ["--", str(accounts)]
    # The shell shows only the report, which load.lua writes to stderr.
    queries = int(sql("SHOW GLOBAL STATUS LIKE 'Questions'"))
    cpu = cpu_time(program)
    database_cpu = cpu_time("db")
    report = json.loads(execute("load", "sh", "-c", '"$@" 2>&1 >/dev/null', "sh", *wrk))
    cpu = cpu_time(program) - cpu
    database_cpu = cpu_time("db") - database_cpu
    queries = int(sql("SHOW GLOBAL STATUS LIKE 'Questions'")) - queries
    requests = max(report["requests"], 1)
    return Load(
        rate=report["requests"] / report["seconds"],
        p50=report["p50"],
        p99=report["p99"],
        failed=report["failed"],
        cpu=cpu / requests,
        database_cpu=database_cpu / requests,
        queries=queries / requests,
    )


def cpu_time(service: str) -> float:
    """Return the microseconds of CPU that a container has used. Only the engine's API tells it."""
    place = run("docker", "context", "inspect", "--format", "{{.Endpoints.docker.Host}}")
    engine = HTTPConnection("localhost")
    engine.sock = socket.socket(socket.AF_UNIX)
    engine.sock.connect(place.removeprefix("unix://"))
    engine.request("GET", f"/containers/{container(service)}/stats?stream=false&one-shot=true")
    nanoseconds = json.load(engine.getresponse())["cpu_stats"]["cpu_usage"]["total_usage"]
    engine.close()
    return float(nanoseconds) / 1000


def seed(accounts: int) -> float:
    """Fill a new table; return how many seconds the seeder's container ran."""
    sql("DROP TABLE IF EXISTS accounts")
    compose(
        "up", "--detach", "--no-deps", "--force-recreate", "seeder", SEED_ACCOUNTS=str(accounts)
    )
    run("docker", "wait", container("seeder"))
    return moment("seeder", "FinishedAt") - moment("seeder", "StartedAt")


def restore() -> float:
    """Fill the table from a dump with the database's own client; return the seconds it took."""
    execute("db", "sh", "-c", "as-root.sh mysqldump --no-autocommit cct accounts >/tmp/dump.sql")
    began = time.monotonic()
    execute("db", "sh", "-c", "as-root.sh mysql cct </tmp/dump.sql")
    seconds = time.monotonic() - began
    execute("db", "rm", "/tmp/dump.sql")
    return seconds


def start(program: str) -> float:
    """Return the seconds from the start of a container to its first page."""
    run("docker", "stop", "--timeout", "5", container(program))
    command = ("docker", "exec", container("load"), "python", "-c", ASK, program)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
        run("docker", "start", container(program))
        output, _ = client.communicate(timeout=TIME_LIMIT)
    return float(output.split()[0]) - moment(program, "StartedAt")


def moment(service: str, field: str) -> float:
    """Return a time of a container's state, in seconds."""
    text = run("docker", "inspect", "--format", f"{{{{.State.{field}}}}}", container(service))
    return datetime.fromisoformat(f"{text[:26]}+00:00").timestamp()  # ...T12:00:00.123456789Z
