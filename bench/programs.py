"""The programs that serve the page, and the load on them."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import NamedTuple

from tests.database import DatabaseServer
from tests.helpers import ROOT, free_port, get, until
from tests.local import stop

HERE = Path(__file__).parent
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # gunicorn and uvicorn stand beside python
US, CEILING, GO = "cct", "aiohttp, a constant", "Go + net/http"
PROGRAMS = {  # {pages} is a directory with the page for them
    US: "python ../server.py",
    CEILING: "python ceiling.py",
    GO: "{pages}/go_peer",
    "Node + Express + mysql2": "node express_peer.js",
    "FastAPI + uvicorn + asyncmy": "uvicorn fastapi_peer:app --port {port} --no-access-log",
    "Flask + gunicorn + PyMySQL": "gunicorn flask_peer:app -b 127.0.0.1:{port} --threads 8 --worker-connections 2000",
}


class Load(NamedTuple):
    """What came of a load."""

    rate: float  # requests a second
    p50: float  # ms
    p99: float  # ms
    failed: float  # requests
    size: float  # bytes of an answer with its head
    cpu: float  # µs of the program for a request
    database_cpu: float  # µs of the database for a request
    queries: float  # for a request
    memory: float  # MB of the program


def middle(loads: list[Load]) -> Load:
    """Return the median of each figure."""
    return Load(*map(median, zip(*loads, strict=True)))


class Usage(NamedTuple):
    """What a program and the database have used since they began."""

    cpu: float  # seconds
    database_cpu: float  # seconds
    queries: int
    memory: float  # MB of the program, now


def session_usage(session: int) -> tuple[float, float]:
    """Return the CPU seconds and the MB of the processes of a session: gunicorn is two."""
    ticks = pages = 0
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended meanwhile
            fields = file.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                ticks += int(fields[11]) + int(fields[12])  # user and system
                pages += int(fields[21])
    return ticks / os.sysconf("SC_CLK_TCK"), pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def usage(session: int, database: DatabaseServer) -> Usage:
    """Return what a program and the database have used."""
    assert database.process
    ((_, queries),) = database.sql("SHOW GLOBAL STATUS LIKE 'Questions'")
    cpu, memory = session_usage(session)
    return Usage(cpu, session_usage(database.process.pid)[0], int(queries), memory)


class Server:
    """A program that serves the page."""

    def __init__(
        self, process: subprocess.Popen[bytes], port: int, database: DatabaseServer
    ) -> None:
        self.process, self.port, self.database = process, port, database

    def page(self) -> str:
        """Return the first page, as soon as there is one."""
        until(lambda: get(self.port)[0] == 200, f"{self.process.args!r} answers", 30)
        return get(self.port)[1]

    def load(
        self, connections: int, seconds: int, path: str = "/", accounts: int | None = None
    ) -> Load:
        """Load it with wrk: one page, or any page of so many accounts."""
        url = f"http://127.0.0.1:{self.port}{path}"
        command = [
            "wrk",
            "-t1",
            f"-c{connections}",
            f"-d{seconds}s",
            "-s",
            f"{HERE}/report.lua",
            url,
        ]
        if accounts is not None:
            command += ["--", str(accounts)]
        before = usage(self.process.pid, self.database)
        report = subprocess.run(command, check=True, text=True, capture_output=True).stderr
        after = usage(self.process.pid, self.database)
        requests, took, p50, p99, failed, size = map(float, report.split())
        cpu, database_cpu, queries = (
            (b - a) / max(requests, 1) for a, b in zip(before[:3], after[:3], strict=True)
        )
        return Load(
            *(requests / took, p50, p99, failed, size / max(requests, 1)),
            *(cpu * 1e6, database_cpu * 1e6, queries, after.memory),
        )


def build_go(directory: Path) -> None:
    """Build the peer in Go; say so if that cannot be done."""
    packages = os.environ.get("GOPATH", "/usr/share/gocode")  # where Debian puts the driver
    env = {"PATH": PATH, "GO111MODULE": "off", "GOPATH": packages, "GOCACHE": f"{directory}/cache"}
    if not shutil.which("go"):
        print(
            "There is no Go: install golang-go and golang-github-go-sql-driver-mysql-dev.",
            flush=True,
        )
    elif subprocess.run(
        ["go", "build", "-o", directory, "go_peer.go"], cwd=HERE, env=env, check=False
    ).returncode:
        print(
            "The peer in Go cannot be built: install golang-github-go-sql-driver-mysql-dev.",
            flush=True,
        )


@contextmanager
def serving(command: str, database: DatabaseServer, pages: Path) -> Iterator[Server]:
    """Give a program that serves, its log in a file."""
    port = free_port()
    settings = {
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "PAGES": str(pages),
        "NODE_ENV": "production",
    }
    process = subprocess.Popen(
        command.format(pages=pages, port=port).split(),
        cwd=HERE,
        env=os.environ | database.env("app") | settings | {"PATH": PATH, "PYTHONPATH": str(ROOT)},
        stdout=(pages / "log").open("wb"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield Server(process, port, database)
    finally:
        stop(process)
