"""Faults of every part of the real stack under a steady load: what clients see, and the recovery without a hand."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import copy
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import Report
from tests.docker import Stack, docker, running_stack, start_engine
from tests.helpers import free_port, until


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
def load(stack: Stack, *allowed: int) -> Iterator[list[Answer]]:
    """Ask for the page forty times a second, and for the health ten times; give the pages as they come.

    At the end each page is a good one or has an allowed status, and no row is lost. Unless the server may be gone, as
    the allowed status 0 says, its health was 200 within a second all the time.
    """
    answers: dict[str, list[Answer]] = {"/": [], "/health": []}
    stopped, rows = threading.Event(), stack.sql("CHECKSUM TABLE accounts")

    def ask(path: str) -> None:
        while not stopped.wait(0.1):
            answers[path].append(Answer(time.monotonic(), *stack.get(path), time.monotonic()))

    with ThreadPoolExecutor(5) as threads:
        clients = threads.map(ask, ("/", "/", "/", "/", "/health"))
        try:
            until(lambda: since(0, 200, answers["/"]), "answering")
            yield answers["/"]
        finally:
            stopped.set()
    list(clients)  # raises what ended one of them
    for page in answers["/"]:
        assert page.status in (200, *allowed)
        assert page.status != 200 or page.text.count('<th scope="row">') == 50
        assert page.status != 503 or "Try again in a few" in page.text
    for health in answers["/health"]:
        assert 0 in allowed or (health.status == 200 and health.ended - health.began < 1)
    assert stack.sql("CHECKSUM TABLE accounts") == rows


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory.mktemp("faults") / "cct") as stack:
        yield stack


def on_host(stack: Stack, service: str, command: str) -> None:
    """Run a shell command about a service's first process, `$pid`, outside of its container and past the engine."""
    pid = stack.inspect(service)["State"]["Pid"]
    docker(
        "run",
        "--rm",
        "--privileged",
        "--pid=host",
        "python:3.14-slim",
        "sh",
        "-c",
        f"pid={pid}; {command}",
    )


def alter_user(stack: Stack, change: str) -> None:
    """Change the app's user in the database, and end its connections."""
    stack.sql(f"ALTER USER app {change}")
    stack.sql("DO 0", "app", "|| true")  # uses up the one login that may be left
    stack.end_app_connections()


def lock(stack: Stack, seconds: int) -> None:
    """Lock the table for some seconds; do not wait for the end."""
    stack.sql(f"LOCK TABLES accounts WRITE; DO SLEEP({seconds})", "root", ">/dev/null 2>&1 &")
    sleeping = f"SELECT 1 FROM information_schema.processlist WHERE info = 'DO SLEEP({seconds})'"
    until(lambda: stack.sql(sleeping), "locked")


Fault = Callable[[Stack], object]
DATABASE_FAULTS: dict[str, tuple[Fault, Fault]] = {
    "stopped": (
        lambda stack: stack.compose("stop", "db"),
        lambda stack: stack.compose("start", "db"),
    ),
    "killed": (lambda stack: on_host(stack, "db", "kill -KILL $pid"), lambda _: None),
    "paused": (
        lambda stack: stack.compose("pause", "db"),
        lambda stack: stack.compose("unpause", "db"),
    ),
    "cut off": (
        lambda stack: docker(
            "network", "disconnect", f"{stack.name}_database", stack.container("app")
        ),
        lambda stack: docker(
            "network", "connect", f"{stack.name}_database", stack.container("app")
        ),
    ),
    "restarted": (lambda stack: stack.compose("restart", "db"), lambda _: None),
    "out of connections": (
        lambda stack: alter_user(stack, "WITH MAX_CONNECTIONS_PER_HOUR 1"),
        lambda stack: alter_user(stack, "WITH MAX_CONNECTIONS_PER_HOUR 0"),
    ),
    "locked": (lambda stack: lock(stack, 3), lambda _: None),
    "without the table": (
        lambda stack: stack.sql("RENAME TABLE accounts TO gone"),
        lambda stack: stack.sql("RENAME TABLE gone TO accounts"),
    ),
    "with another password": (
        lambda stack: alter_user(stack, "IDENTIFIED BY 'changed'"),
        lambda stack: stack.exec("db", "bash", "/docker-entrypoint-initdb.d/users.sh", "rotate"),
    ),
}


@pytest.mark.parametrize("fault", DATABASE_FAULTS)
def test_database(stack: Stack, fault: str, report: Report) -> None:
    start, end = DATABASE_FAULTS[fault]
    started = stack.started()
    with load(stack, 503) as pages:
        began = time.monotonic()
        start(stack)
        until(lambda: since(began, 503, pages), "noticed")
        end(stack)
        until(lambda: stack.health("db") == "healthy", "healthy", 120)
        healthy = time.monotonic()
        back = until(lambda: since(healthy, 200, pages), "back", 2.5)[0].ended - healthy
    slowest = max(page.ended - page.began for page in pages)
    report(f"database {fault}: slowest {slowest:.2f} s, back {back:.1f} s after it was healthy")
    assert slowest <= 2.5  # DB_TIMEOUT, and half a second
    assert (stack.started(), stack.inspect("app")["State"]["Health"]["FailingStreak"]) == (
        started,
        0,
    )


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
    with load(stack, 0, 503) as pages:
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
    lock(stack, 10)  # time enough to kill it
    stack.compose("start", "seeder")
    on_host(stack, "seeder", "kill -KILL $pid")
    until(lambda: stack.sql("SELECT COUNT(*) FROM accounts") == "100\n", "seeded")
    assert stack.inspect("seeder")["RestartCount"] == 1


def test_full_disk_of_the_database(tmp_path: Path) -> None:
    disk = tmp_path / "disk.yml"
    disk.write_text("volumes: {data: {driver_opts: {type: tmpfs, device: tmpfs, o: size=300m}}}\n")
    with running_stack(tmp_path / "cct", COMPOSE_FILE=f"docker-compose.yml:{disk}") as stack:
        stack.exec("db", "sh", "-c", "cat /dev/zero >/var/lib/mysql/filler || true")
        with pytest.raises(AssertionError, match=r"is full|Disk full|No space"):
            stack.sql("CREATE TABLE more (id INT)")
        stack.compose("restart", "app")
        until(lambda: stack.health() == "healthy", "healthy")
        assert len(stack.page()["accounts"]) == 50  # over a new connection
        stack.exec("db", "rm", "/var/lib/mysql/filler")
        stack.sql("CREATE TABLE more (id INT)")


@pytest.fixture(scope="module")
def opened(stack: Stack) -> Iterator[Stack]:
    """Give the same stack, open to the network, on another machine: a container with its name and an engine."""
    api, opened = free_port(), copy(stack)
    opened.port = free_port()
    opened.env = stack.env | {"DOCKER_HOST": f"tcp://127.0.0.1:{api}", "APP_ADDRESS": "0.0.0.0"}
    try:
        ports = (
            f"--publish=127.0.0.1:{api}:2375",
            f"--publish=127.0.0.1:{opened.port}:{stack.port}",
        )
        start_engine(
            stack.name, *ports, f"--volume={stack.folder}:{stack.folder}", "docker:28-dind"
        )
        docker(
            "save",
            "--output",
            f"{stack.folder}/images",
            *stack.compose("config", "--images").split(),
        )
        docker("load", "--input", f"{stack.folder}/images", env=opened.env)
        opened.compose("up", "-d", "--wait")
        yield opened
    finally:
        docker("rm", "-f", "-v", stack.name)


def test_opened_it_serves_the_network_and_cannot_reach_it(opened: Stack) -> None:
    assert opened.get("/ready") == (200, "ready\n")
    gateway = docker(
        "network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Gateway}}"
    ).strip()
    with socket.create_server((gateway, 0)) as outside:
        attempt = (
            "python",
            "-c",
            f"import socket; socket.create_connection({outside.getsockname()}, 3)",
        )
        with pytest.raises(AssertionError, match="timed out"):
            opened.exec("app", *attempt)
        docker(
            "run", "--rm", "--network=host", f"{opened.name}-app", *attempt, env=opened.env
        )  # where it is allowed
    with pytest.raises(
        AssertionError, match="Temporary failure in name resolution"
    ):  # nobody was asked
        opened.exec("app", "python", "-c", "import socket; socket.getaddrinfo('example.com', 80)")


def test_engine_stopped_and_killed(opened: Stack, report: Report) -> None:
    for end in ("stop", "kill"):
        started = opened.started()
        with load(opened, 0, 503) as pages:
            docker(end, opened.name)
            gone = time.monotonic()
            docker("start", opened.name)
            back = until(partial(since, gone, 200, pages), "back")[0].ended - gone
            until(
                lambda: opened.health() == "healthy" and opened.health("db") == "healthy", "healthy"
            )
        report(f"engine, {end}: back {back:.1f} s after its start")
        assert opened.started() != started
        assert opened.inspect("autoheal")["State"]["Running"]
