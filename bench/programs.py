"""Start the programs that serve the page, and check the tools that the bench needs."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tools import ROOT
from tools.local import stop
from tools.private_database import PrivateDatabase
from tools.waiting import free_port, get, until

HERE = Path(__file__).parent
GO_PACKAGES = "golang-go and golang-github-go-sql-driver-mysql-dev"


@dataclass(frozen=True)
class Program:
    """A program that serves the page. Its command runs in the project's folder."""

    name: str
    command: tuple[str, ...]


CCT = Program("cct", (sys.executable, "server.py"))
CEILING = Program("aiohttp, a constant", (sys.executable, "-m", "bench.ceiling"))


@dataclass
class Server:
    """A program that runs."""

    pid: int
    port: int
    database: PrivateDatabase

    def page(self) -> str:
        """Return the first page, as soon as there is one."""
        until(lambda: get(self.port)[0] == 200, f"a page on port {self.port}", 30)
        return get(self.port)[1]


@contextmanager
def serving(program: Program, database: PrivateDatabase) -> Iterator[Server]:
    """Start a program, and stop it at the end. Its log is in the folder of the database."""
    port = free_port()
    settings = {"HOST": "127.0.0.1", "PORT": str(port), "PAGE": str(page_file(database))}
    with (database.folder / "program.log").open("wb") as log:
        process = subprocess.Popen(
            program.command,
            cwd=ROOT,
            env=os.environ | database.env("app") | settings,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield Server(process.pid, port, database)
    finally:
        stop(process)


def page_file(database: PrivateDatabase) -> Path:
    """Return a file with the page of server.py, for the other programs."""
    return database.folder / "page.html"


def require_tools() -> None:
    """Exit with a sentence for each tool that is missing."""
    missing = []
    if not shutil.which("wrk"):
        missing.append("Install wrk: it makes the load.")
    if not find_client():
        missing.append("Install the client of MySQL or MariaDB: the seeder is compared with it.")
    if missing:
        raise SystemExit("\n".join(missing))


def find_client() -> str | None:
    """Return the path of the database's own client."""
    return shutil.which("mysql") or shutil.which("mariadb")


def find_programs(folder: Path) -> list[Program]:
    """Return the programs; print a sentence if Go is missing."""
    programs = [CCT, CEILING]
    binary = f"{folder}/go_peer"
    if not shutil.which("go"):
        print(f"Go is left out: there is none. Install {GO_PACKAGES}.", flush=True)
    elif not build_go(binary, folder):
        print(f"Go is left out: it cannot be built. Install {GO_PACKAGES}.", flush=True)
    else:
        programs.append(Program("Go, net/http", (binary,)))
    return programs


def build_go(binary: str, folder: Path) -> bool:
    """Build the peer in Go; return whether that worked."""
    settings = {
        "GO111MODULE": "off",
        "GOPATH": "/usr/share/gocode",  # where Debian puts the driver
        "GOCACHE": f"{folder}/go-cache",
    }
    command = ["go", "build", "-o", binary, f"{HERE}/go_peer.go"]
    return subprocess.run(command, env=os.environ | settings, check=False).returncode == 0
