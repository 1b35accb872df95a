"""Faults of the real stack, most under a steady load: what clients see, how it recovers."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.conftest import Report
from tests.engine.clients import load
from tests.stack import Stack, docker, running_stack
from tools.waiting import until

pytestmark = pytest.mark.timed

SLOWEST = 2.5  # seconds for an answer: DB_TIMEOUT, and half a second
BACK = 2.5  # seconds after the database is healthy


@contextmanager
def database_fault(stack: Stack, report: Report) -> Iterator[Callable[[], object]]:
    """Run clients while a test causes and ends a fault of the database; then assert what they saw.

    Yield a function that waits for a 503. No answer may take longer than DB_TIMEOUT, with a
    tolerance of half a second. Pages must be back soon after the database. The server must stay
    healthy, and must not be restarted.
    """
    started = stack.started()
    with load(stack, 503) as clients:
        began = time.monotonic()
        yield lambda: clients.wait_for(503, began)
        stack.wait_until_healthy("db")
        healthy = time.monotonic()
        back = clients.wait_for(200, healthy, BACK).ended - healthy
        assert clients.pages_since(began, 503)
    slowest = max(page.ended - page.began for page in clients.pages)
    report(f"slowest answer {slowest:.2f} s, back {back:.1f} s after the database is healthy")
    assert slowest <= SLOWEST
    assert stack.started() == started
    assert stack.inspect("app")["State"]["Health"]["FailingStreak"] == 0


def test_database_stopped(stack: Stack, report: Report) -> None:
    with database_fault(stack, report) as wait_for_503:
        stack.compose("stop", "db")
        wait_for_503()
        stack.compose("start", "db")


def test_database_killed(stack: Stack, report: Report) -> None:
    with database_fault(stack, report) as wait_for_503:
        stack.on_host("db", "kill -KILL $pid")
        wait_for_503()


def test_database_paused(stack: Stack, report: Report) -> None:
    with database_fault(stack, report) as wait_for_503:
        stack.compose("pause", "db")
        wait_for_503()
        stack.compose("unpause", "db")


def test_database_cut_off(stack: Stack, report: Report) -> None:
    network = f"{stack.name}_database"
    with database_fault(stack, report) as wait_for_503:
        docker("network", "disconnect", network, stack.container("app"))
        wait_for_503()
        docker("network", "connect", network, stack.container("app"))


def test_database_restarted(stack: Stack, report: Report) -> None:
    with database_fault(stack, report):
        stack.compose("restart", "db")


def alter_app(stack: Stack, change: str) -> None:
    """Change the user app in the database, and end the server's connections."""
    stack.sql(f"ALTER USER app {change}")
    with suppress(AssertionError):
        stack.sql_as_app("DO 0")  # with MAX_CONNECTIONS_PER_HOUR 1, this is the one login
    stack.end_app_connections()


def test_database_out_of_connections(stack: Stack, report: Report) -> None:
    with database_fault(stack, report) as wait_for_503:
        alter_app(stack, "WITH MAX_CONNECTIONS_PER_HOUR 1")
        wait_for_503()
        alter_app(stack, "WITH MAX_CONNECTIONS_PER_HOUR 0")


@contextmanager
def locked_table(stack: Stack) -> Iterator[None]:
    """Lock the table until the end of the context."""
    statement = "LOCK TABLES accounts WRITE; DO SLEEP(600)"
    mysql = ("as-root.sh", "mysql", "-e", statement, "cct")
    docker("exec", "--detach", stack.container("db"), *mysql)
    select = "SELECT id FROM information_schema.processlist WHERE info = 'DO SLEEP(600)'"
    connection = until(lambda: stack.sql(select), "locked")
    yield
    stack.sql(f"KILL {connection}")


def test_database_table_locked(stack: Stack, report: Report) -> None:
    with database_fault(stack, report) as wait_for_503, locked_table(stack):
        wait_for_503()


def test_database_without_the_table(stack: Stack, report: Report) -> None:
    with database_fault(stack, report) as wait_for_503:
        stack.sql("RENAME TABLE accounts TO gone")
        wait_for_503()
        stack.sql("RENAME TABLE gone TO accounts")


def test_database_with_another_password(stack: Stack, report: Report) -> None:
    with database_fault(stack, report) as wait_for_503:
        alter_app(stack, "IDENTIFIED BY 'changed'")
        wait_for_503()
        stack.exec("db", "users.sh", "rotate")


@contextmanager
def server_fault(stack: Stack, report: Report) -> Iterator[None]:
    """Run clients while a test breaks the server; then assert that the server was restarted."""
    started = stack.started()
    with load(stack, 0, 503) as clients:
        began = time.monotonic()
        yield
        gone = clients.wait_for(0, began)
        back = clients.wait_for(200, gone.ended)
        report(f"back after {back.ended - began:.1f} s")
        stack.wait_until_healthy()
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
    """A program uses all memory of the container, and the kernel kills the server."""
    with server_fault(stack, report):
        stack.in_server("echo 1000 >/proc/$pid/oom_score_adj")
        docker("exec", "--detach", stack.container("app"), "python", "-c", "b'x' * 10**9")


def test_killed_healer_is_back_and_heals(stack: Stack) -> None:
    started = stack.started("autoheal")
    with load(stack):
        stack.on_host("autoheal", "kill -KILL $pid")
        until(lambda: stack.started("autoheal") != started, "restarted")
    stack.heal()


def test_killed_seeder_is_back_and_seeds(stack: Stack) -> None:
    stack.sql("TRUNCATE accounts")
    with locked_table(stack):
        stack.compose("start", "seeder")
        stack.on_host("seeder", "kill -KILL $pid")
    until(lambda: stack.sql("SELECT COUNT(*) FROM accounts") == "100\n", "seeded")
    assert stack.inspect("seeder")["RestartCount"] == 1


def test_full_disk_of_the_database(tmp_path: Path) -> None:
    """Reading still works, even over new connections. Writing works again when there is space."""
    disk = tmp_path / "disk.yml"
    options = "{type: tmpfs, device: tmpfs, o: size=300m}"
    disk.write_text(f"volumes: {{data: {{driver_opts: {options}}}}}\n")
    with running_stack(tmp_path / "cct", COMPOSE_FILE=f"docker-compose.yml:{disk}") as stack:
        stack.exec("db", "sh", "-c", "cat /dev/zero >/var/lib/mysql/filler || true")
        with pytest.raises(AssertionError, match=r"is full|Disk full|No space"):
            stack.sql("CREATE TABLE more (id INT)")
        stack.compose("restart", "app")
        stack.wait_until_healthy()
        assert len(stack.page()["accounts"]) == 50
        stack.exec("db", "rm", "/var/lib/mysql/filler")
        stack.sql("CREATE TABLE more (id INT)")
