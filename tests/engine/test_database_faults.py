"""Faults of the database under a steady load: clients get a 503 in time, and soon pages again."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from tests.conftest import Report
from tests.engine.clients import load
from tests.stack import Stack, docker

pytestmark = pytest.mark.timed

SLOWEST = 2.5  # seconds for an answer: DB_TIMEOUT, and half a second
BACK = 2.5  # seconds after the database is healthy


@contextmanager
def database_fault(stack: Stack, report: Report) -> Iterator[Callable[[], object]]:
    """Run clients while a test causes and ends a fault of the database; then assert what they saw.

    Yield a function that waits for a 503. No answer may take longer than DB_TIMEOUT, with a
    tolerance of half a second. Pages must be back soon after the database. The server must stay
    healthy, answer /health within a second, and must not be restarted.
    """
    started = stack.started()
    with load(stack, 503) as clients:
        began = time.monotonic()
        yield lambda: clients.wait_for(503, began)
        stack.wait_until_healthy("db")
        healthy = time.monotonic()
        back = clients.wait_for(200, healthy, BACK).ended - healthy
        assert clients.pages_since(503, began)
    slowest = max(page.ended - page.began for page in clients.pages)
    report(f"slowest answer {slowest:.2f} s, back {back:.1f} s after the database is healthy")
    assert slowest <= SLOWEST
    assert max(health.ended - health.began for health in clients.healths) < 1
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


def test_database_table_locked(stack: Stack, report: Report) -> None:
    with database_fault(stack, report) as wait_for_503, stack.locked_table():
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
