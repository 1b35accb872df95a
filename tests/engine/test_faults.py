"""Faults of each part of the real stack under a steady load: what clients see, and the recovery."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import Report
from tests.engine.machine import Machine
from tests.stack import Stack, docker, running_stack
from tools.waiting import until

SLOWEST = 2.5  # seconds for an answer: DB_TIMEOUT, and half a second
BACK = 2.5  # seconds after the database is healthy


class Answer(NamedTuple):
    """What became of one request; status 0 if nothing answered."""

    began: float
    status: int
    text: str
    ended: float


class Clients:
    """Four clients that ask for the page, and one for the health, ten times a second each."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.pages: list[Answer] = []
        self.healths: list[Answer] = []
        self.stopped = threading.Event()

    def ask(self, path: str, answers: list[Answer]) -> None:
        """Make the requests of one client, until all are stopped."""
        while not self.stopped.wait(0.1):
            began = time.monotonic()
            status, text = self.stack.get(path)
            answers.append(Answer(began, status, text, time.monotonic()))

    @contextmanager
    def running(self) -> Iterator[None]:
        """Give a context in which the clients make their requests."""
        with ThreadPoolExecutor(5) as pool:
            clients = [pool.submit(self.ask, "/", self.pages) for _ in range(4)]
            clients.append(pool.submit(self.ask, "/health", self.healths))
            try:
                self.wait_for(200, 0)
                yield
            finally:
                self.stopped.set()
        for client in clients:
            client.result()  # raises what ended it

    def pages_since(self, moment: float, status: int) -> list[Answer]:
        """Return the answers with a status, of those to requests that began after a moment."""
        return [page for page in self.pages if page.began > moment and page.status == status]

    def wait_for(self, status: int, moment: float, seconds: float = 60) -> Answer:
        """Wait for an answer with a status to a request that begins after a moment."""
        pages = until(lambda: self.pages_since(moment, status), f"a {status}", seconds)
        return pages[0]


@contextmanager
def load(stack: Stack, *allowed: int) -> Iterator[Clients]:
    """Give clients that make requests in the context.

    After it, each page is a good one or has an allowed status, and no row is lost. The health was
    200 within a second all the time, unless 0 is allowed: then the server may be gone.
    """
    rows = stack.sql("CHECKSUM TABLE accounts")
    clients = Clients(stack)
    with clients.running():
        yield clients

    for page in clients.pages:
        assert page.status in (200, *allowed)
        if page.status == 200:
            assert page.text.count('<th scope="row">') == 50
        if page.status == 503:
            assert "Try again in a few seconds." in page.text
    if 0 not in allowed:
        for health in clients.healths:
            assert health.status == 200
            assert health.ended - health.began < 1
    assert stack.sql("CHECKSUM TABLE accounts") == rows


@contextmanager
def database_fault(stack: Stack, report: Report) -> Iterator[Callable[[], None]]:
    """Give a context for a fault of the database and its end, and a function that awaits a 503.

    No answer takes longer than DB_TIMEOUT and half a second. Pages are back soon after the
    database is. Nothing restarts the server, or calls it unhealthy.
    """
    started = stack.started()
    with load(stack, 503) as clients:
        began = time.monotonic()
        yield lambda: wait_for_503(clients, began)
        until(lambda: stack.health("db") == "healthy", "healthy", 120)
        healthy = time.monotonic()
        back = clients.wait_for(200, healthy, BACK).ended - healthy
        assert clients.pages_since(began, 503)
    slowest = max(page.ended - page.began for page in clients.pages)
    report(f"slowest answer {slowest:.2f} s, back {back:.1f} s after the database is healthy")
    assert slowest <= SLOWEST
    assert stack.started() == started
    assert stack.inspect("app")["State"]["Health"]["FailingStreak"] == 0


def wait_for_503(clients: Clients, moment: float) -> None:
    """Wait until a client notices that there are no accounts."""
    clients.wait_for(503, moment)


def test_database_stopped(stack: Stack, report: Report) -> None:
    with database_fault(stack, report) as noticed:
        stack.compose("stop", "db")
        noticed()
        stack.compose("start", "db")


def test_database_killed(stack: Stack, report: Report) -> None:
    with database_fault(stack, report) as noticed:
        stack.on_host("db", "kill -KILL $pid")
        noticed()


def test_database_paused(stack: Stack, report: Report) -> None:
    with database_fault(stack, report) as noticed:
        stack.compose("pause", "db")
        noticed()
        stack.compose("unpause", "db")


def test_database_cut_off(stack: Stack, report: Report) -> None:
    network = f"{stack.name}_database"
    with database_fault(stack, report) as noticed:
        docker("network", "disconnect", network, stack.container("app"))
        noticed()
        docker("network", "connect", network, stack.container("app"))


def test_database_restarted(stack: Stack, report: Report) -> None:
    with database_fault(stack, report):
        stack.compose("restart", "db")


def alter_app(stack: Stack, change: str) -> None:
    """Change the user app in the database, and end the server's connections."""
    stack.sql(f"ALTER USER app {change}")
    with suppress(AssertionError):
        stack.sql_as_app("DO 0")  # the one login that may be left
    stack.end_app_connections()


def test_database_out_of_connections(stack: Stack, report: Report) -> None:
    with database_fault(stack, report) as noticed:
        alter_app(stack, "WITH MAX_CONNECTIONS_PER_HOUR 1")
        noticed()
        alter_app(stack, "WITH MAX_CONNECTIONS_PER_HOUR 0")


def lock_table(stack: Stack, seconds: int) -> None:
    """Lock the table for some seconds; return as soon as it is locked."""
    statement = f"LOCK TABLES accounts WRITE; DO SLEEP({seconds})"
    mysql = ("as-root.sh", "mysql", "-e", statement, "cct")
    docker("exec", "--detach", stack.container("db"), *mysql)
    sleeping = f"SELECT 1 FROM information_schema.processlist WHERE info = 'DO SLEEP({seconds})'"
    until(lambda: stack.sql(sleeping), "locked")


def test_database_table_locked(stack: Stack, report: Report) -> None:
    with database_fault(stack, report) as noticed:
        lock_table(stack, 3)
        noticed()


def test_database_without_the_table(stack: Stack, report: Report) -> None:
    with database_fault(stack, report) as noticed:
        stack.sql("RENAME TABLE accounts TO gone")
        noticed()
        stack.sql("RENAME TABLE gone TO accounts")


def test_database_with_another_password(stack: Stack, report: Report) -> None:
    with database_fault(stack, report) as noticed:
        alter_app(stack, "IDENTIFIED BY 'changed'")
        noticed()
        stack.exec("db", "users.sh", "rotate")


@contextmanager
def server_fault(stack: Stack, report: Report) -> Iterator[None]:
    """Give a context for a fault of the server; after it, the server has been restarted."""
    started = stack.started()
    with load(stack, 0, 503) as clients:
        began = time.monotonic()
        yield
        gone = clients.wait_for(0, began)
        back = clients.wait_for(200, gone.ended)
        report(f"back after {back.ended - began:.1f} s")
        until(lambda: stack.health() == "healthy", "healthy")
    assert stack.started() != started


def test_server_killed(stack: Stack, report: Report) -> None:
    with server_fault(stack, report):
        stack.in_server("kill -KILL $pid")


def test_server_killed_with_its_first_process(stack: Stack, report: Report) -> None:
    with server_fault(stack, report):
        stack.on_host("app", "kill -KILL $pid")


def test_server_frozen(stack: Stack, report: Report) -> None:
    with server_fault(stack, report):
        stack.in_server("kill -STOP $pid")


def test_server_out_of_memory(stack: Stack, report: Report) -> None:
    """Something takes more memory than the container has. The kernel ends the server for it."""
    with server_fault(stack, report):
        stack.in_server("echo 1000 >/proc/$pid/oom_score_adj")
        docker("exec", "--detach", stack.container("app"), "python", "-c", "b'x' * 10**9")


def test_killed_healer_is_back_and_heals(stack: Stack) -> None:
    started = stack.started("autoheal")
    with load(stack):
        stack.on_host("autoheal", "kill -KILL $pid")
        until(lambda: stack.started("autoheal") != started, "restarted")

    started = stack.started()
    stack.get("/make-unhealthy")
    until(lambda: stack.started() != started and stack.health() == "healthy", "healed")


def test_killed_seeder_is_back_and_seeds(stack: Stack) -> None:
    stack.sql("TRUNCATE accounts")
    lock_table(stack, 10)  # time enough to kill it
    restarts = stack.inspect("seeder")["RestartCount"]
    stack.compose("start", "seeder")
    stack.on_host("seeder", "kill -KILL $pid")
    until(lambda: stack.sql("SELECT COUNT(*) FROM accounts") == "100\n", "seeded")
    assert stack.inspect("seeder")["RestartCount"] == restarts + 1


def test_full_disk_of_the_database(tmp_path: Path) -> None:
    """Reading goes on, over new connections, too. Writing works again when there is space."""
    disk = tmp_path / "disk.yml"
    options = "{type: tmpfs, device: tmpfs, o: size=300m}"
    disk.write_text(f"volumes: {{data: {{driver_opts: {options}}}}}\n")
    with running_stack(tmp_path / "cct", COMPOSE_FILE=f"docker-compose.yml:{disk}") as stack:
        stack.exec("db", "sh", "-c", "cat /dev/zero >/var/lib/mysql/filler || true")
        with pytest.raises(AssertionError, match=r"is full|Disk full|No space"):
            stack.sql("CREATE TABLE more (id INT)")
        stack.compose("restart", "app")
        until(lambda: stack.health() == "healthy", "healthy")
        assert len(stack.page()["accounts"]) == 50
        stack.exec("db", "rm", "/var/lib/mysql/filler")
        stack.sql("CREATE TABLE more (id INT)")


def wait_until_all_is_back(machine: Machine, clients: Clients, report: Report) -> None:
    """Wait for a page after the start of the engine, and until all services are sound."""
    began = time.monotonic()
    back = clients.wait_for(200, began)
    report(f"back {back.ended - began:.1f} s after the start of the engine")
    until(lambda: machine.health() == "healthy", "app healthy")
    until(lambda: machine.health("db") == "healthy", "db healthy")
    until(lambda: machine.health("autoheal") == "healthy", "autoheal healthy")


def test_engine_stopped(machine: Machine, report: Report) -> None:
    machine.start_engine()
    machine.compose("up", "-d", "--wait")
    started = machine.started()
    with load(machine, 0, 503) as clients:
        machine.stop_engine()
        machine.start_engine()
        wait_until_all_is_back(machine, clients, report)
    assert machine.started() != started


def test_engine_killed(machine: Machine, report: Report) -> None:
    """As by a power cut: engine and containers end at once."""
    machine.start_engine()
    machine.compose("up", "-d", "--wait")
    started = machine.started()
    with load(machine, 0, 503) as clients:
        machine.lose_power()
        machine.start_engine()
        wait_until_all_is_back(machine, clients, report)
    assert machine.started() != started
