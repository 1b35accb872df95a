"""Faults of every part of the real stack under a steady load: what clients see, and the recovery without a hand."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import Report
from tests.docker import Stack, docker, running_stack, start_engine
from tests.helpers import free_port, until

DB_TIMEOUT = 2.0
LIMIT = "ALTER USER app WITH MAX_USER_CONNECTIONS"
LOCK = "LOCK TABLES accounts WRITE; DO SLEEP(3)"


class Answer(NamedTuple):
    """What one request came to; status 0 if nothing answered."""

    began: float
    status: int
    text: str
    ended: float


def since(moment: float, status: int, answers: list[Answer]) -> list[Answer]:
    """Return the answers with a status, of those to requests that began after a moment."""
    return [answer for answer in answers if answer.began > moment and answer.status == status]


@contextmanager
def load(stack: Stack, *allowed: int) -> Iterator[tuple[list[Answer], list[Answer]]]:
    """Ask for the page forty times a second, and for the health twenty times; give both kinds of answers as they come.

    At the end each page is a good one or has an allowed status, each is whole, and no row is lost.
    """
    pages: list[Answer] = []
    healths: list[Answer] = []
    stopped, rows = threading.Event(), stack.sql("CHECKSUM TABLE accounts")

    def ask(path: str, pause: float, answers: list[Answer]) -> None:
        while not stopped.wait(pause):
            answers.append(Answer(time.monotonic(), *stack.get(path), time.monotonic()))

    with ThreadPoolExecutor(5) as threads:
        clients = [threads.submit(ask, "/", 0.1, pages) for _ in range(4)]
        clients.append(threads.submit(ask, "/health", 0.05, healths))
        try:
            until(lambda: since(0, 200, pages), "answering")
            yield pages, healths
        finally:
            stopped.set()
    for client in clients:
        client.result()  # raises what ended it
    for page in pages:
        assert page.status in (200, *allowed)
        assert page.status != 200 or page.text.count('<th scope="row">') == 50
        assert page.status != 503 or "Try again in a few" in page.text
        assert page.status == 0 or page.text.endswith("</html>\n")
    assert stack.sql("CHECKSUM TABLE accounts") == rows


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory.mktemp("faults") / "cct") as stack:
        yield stack


def on_host(stack: Stack, service: str, command: str) -> None:
    """Run a shell command about a service's first process, `$pid`, outside of its container and past the engine."""
    pid = stack.inspect(service)["State"]["Pid"]
    docker("run", "--rm", "--privileged", "--pid=host", "python:3.14-slim", "sh", "-c", f"pid={pid}; {command}")


def connections(stack: Stack, which: str) -> list[str]:
    """Return the ids of the database's connections that meet a condition."""
    return stack.sql(f"SELECT id FROM information_schema.processlist WHERE {which}").split()


def kill_connections(stack: Stack, which: str = "user = 'app'") -> None:
    """End the connections that meet a condition; one may end by itself first."""
    stack.sql("".join(f"KILL {id};" for id in connections(stack, which)), "root", "--force")


def in_background(stack: Stack, user: str, statements: str) -> None:
    """Execute statements as a user, and wait until the last of them runs, but not for its end."""
    stack.sql(statements, user, ">/dev/null 2>&1 &")
    until(lambda: connections(stack, f"info = '{statements.rpartition('; ')[2]}'"), f"running: {statements}")


def use_up_the_connections(stack: Stack) -> None:
    """Give the app's user one connection, which another client holds."""
    stack.sql(f"{LIMIT} 1")  # which counts those that are made from now on
    in_background(stack, "app", "DO SLEEP(60)")
    kill_connections(stack, "user = 'app' AND IFNULL(info, '') <> 'DO SLEEP(60)'")


def change_the_password(stack: Stack) -> None:
    """Change the app's password in the database alone, as the app itself can."""
    stack.sql("ALTER USER USER() IDENTIFIED BY 'changed'", "app")
    kill_connections(stack)


Fault = Callable[[Stack], object]
DATABASE_FAULTS: dict[str, tuple[Fault, Fault]] = {
    "stopped": (lambda stack: stack.compose("stop", "db"), lambda stack: stack.compose("start", "db")),
    "killed": (lambda stack: on_host(stack, "db", "kill -KILL $pid"), lambda _: None),
    "paused": (lambda stack: stack.compose("pause", "db"), lambda stack: stack.compose("unpause", "db")),
    "cut off": (
        lambda stack: docker("network", "disconnect", f"{stack.name}_database", stack.container("app")),
        lambda stack: docker("network", "connect", f"{stack.name}_database", stack.container("app")),
    ),
    "restarted": (lambda stack: stack.compose("restart", "db"), lambda _: None),
    "out of connections": (use_up_the_connections, lambda stack: stack.sql(f"{LIMIT} 0")),
    "locked": (lambda stack: in_background(stack, "root", LOCK), lambda _: None),
    "without the table": (
        lambda stack: stack.sql("RENAME TABLE accounts TO gone"),
        lambda stack: stack.sql("RENAME TABLE gone TO accounts"),
    ),
    "with another password": (
        change_the_password,
        lambda stack: stack.exec("db", "bash", "/docker-entrypoint-initdb.d/users.sh", "rotate"),
    ),
}


@pytest.mark.parametrize("fault", DATABASE_FAULTS)
def test_database(stack: Stack, fault: str, report: Report) -> None:
    start, end = DATABASE_FAULTS[fault]
    started = stack.started()
    with load(stack, 503) as (pages, healths):
        began = time.monotonic()
        start(stack)
        until(lambda: since(began, 503, pages), "noticed")
        end(stack)
        until(lambda: stack.health("db") == "healthy", "healthy", 120)
        healthy = time.monotonic()
        back = until(lambda: since(healthy, 200, pages), "back", 2.5)[0].ended - healthy
    slowest = max(page.ended - page.began for page in pages)
    lost = len(since(0, 503, pages))
    report(f"database {fault}: {lost} answers 503, slowest {slowest:.2f} s, back {back:.1f} s after it was healthy")
    assert slowest <= DB_TIMEOUT + 0.5
    assert {health.status for health in healths} == {200}
    assert max(health.ended - health.began for health in healths) < DB_TIMEOUT / 2
    assert (stack.started(), stack.inspect("app")["State"]["Health"]["FailingStreak"]) == (started, 0)


def run_out_of_memory(stack: Stack) -> None:
    """Take more memory than the container has, and let the kernel end the server for it."""
    on_host(stack, "app", "echo 1000 >/proc/$pid/oom_score_adj")
    docker("exec", "-d", stack.container("app"), "python", "-c", "b'x' * 10**9")


APP_FAULTS: dict[str, Fault] = {
    "killed": lambda stack: on_host(stack, "app", "kill -KILL $pid"),
    "frozen": lambda stack: on_host(stack, "app", "kill -STOP $pid"),
    "out of memory": run_out_of_memory,
}


@pytest.mark.parametrize("fault", APP_FAULTS)
def test_app(stack: Stack, fault: str, report: Report) -> None:
    started = stack.started()
    with load(stack, 0, 503) as (pages, _):
        began = time.monotonic()
        APP_FAULTS[fault](stack)
        until(lambda: since(began, 0, pages), "noticed")
        until(lambda: since(since(began, 0, pages)[-1].ended, 200, pages), "back")
        back = time.monotonic() - began
        until(lambda: stack.health() == "healthy", "healthy")
    assert stack.started() != started
    report(f"app {fault}: back after {back:.1f} s")


def test_killed_healer_is_back_and_heals(stack: Stack) -> None:
    started = stack.started("autoheal")
    with load(stack):
        on_host(stack, "autoheal", "kill -KILL $pid")
        until(lambda: stack.started("autoheal") != started, "restarted")
    started = stack.started()
    stack.get("/make-unhealthy")
    until(lambda: stack.started() != started and stack.health() == "healthy", "healed")


def test_killed_seeder_is_back_and_seeds(stack: Stack) -> None:
    stack.sql("TRUNCATE accounts")
    in_background(stack, "root", LOCK)
    stack.compose("start", "seeder")
    on_host(stack, "seeder", "kill -KILL $pid")
    until(lambda: stack.sql("SELECT COUNT(*) FROM accounts") == "100\n", "seeded")
    assert stack.inspect("seeder")["RestartCount"] == 1


def test_full_disk_of_the_database(tmp_path: Path) -> None:
    disk = tmp_path / "disk.yml"
    disk.write_text("volumes: {data: {driver_opts: {type: tmpfs, device: tmpfs, o: size=300m}}}\n")
    with running_stack(tmp_path / "cct", COMPOSE_FILE=f"docker-compose.yml:{disk}") as stack:
        with pytest.raises(AssertionError, match="No space left"):
            stack.exec("db", "sh", "-c", "cat /dev/zero >/var/lib/mysql/filler")
        with pytest.raises(AssertionError, match=r"is full|Disk full|No space"):
            stack.sql("CREATE TABLE more (id INT)")
        assert len(stack.page()["accounts"]) == 50
        stack.compose("restart", "app")
        until(lambda: stack.health() == "healthy", "healthy")
        assert len(stack.page()["accounts"]) == 50  # over a new connection
        stack.exec("db", "rm", "/var/lib/mysql/filler")
        stack.sql("CREATE TABLE more (id INT)")
        assert stack.sql("SELECT COUNT(*) FROM accounts") == "100\n"


def test_engine_stopped_and_killed(tmp_path: Path, report: Report) -> None:
    api = free_port()
    stack = Stack(tmp_path / "cct", DOCKER_HOST=f"tcp://127.0.0.1:{api}", APP_ADDRESS="0.0.0.0")
    images = ["mysql:9.7", "willfarrell/autoheal:1.2.0", f"{stack.name}-app", f"{stack.name}-seeder"]
    engine = f"{stack.name}-engine"
    try:
        ports = [f"--publish=127.0.0.1:{port}" for port in (f"{api}:2375", f"{stack.port}:{stack.port}")]
        start_engine(engine, *ports, f"--volume={stack.folder}:{stack.folder}", "docker:28-dind")
        docker("compose", "build", cwd=stack.folder, env=stack.env | {"DOCKER_HOST": ""})
        docker("compose", "pull", "--policy", "missing", "db", "autoheal")
        docker("save", "--output", f"{stack.folder}/images", *images)
        docker("load", "--input", f"{stack.folder}/images", env=stack.env)
        stack.compose("up", "-d", "--wait")
        for end in ("stop", "kill"):
            started = stack.started()
            with load(stack, 0, 503) as (pages, _):
                docker(end, engine)
                gone = time.monotonic()
                docker("start", engine)
                back = until(partial(since, gone, 200, pages), "back")[0].ended - gone
                until(lambda: stack.health() == "healthy" and stack.health("db") == "healthy", "healthy")
            report(f"engine, {end}: back {back:.1f} s after its start")
            assert stack.started() != started
            assert stack.inspect("autoheal")["State"]["Running"]
    finally:
        docker("rm", "-f", "-v", engine)
        docker("image", "rm", "--force", *images[2:])
