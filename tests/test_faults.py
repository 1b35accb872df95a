"""Faults of every part of the real stack under a steady load: what clients see, and the recovery without a hand."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import Report
from tests.docker import Stack, docker, has_engine, running_stack
from tests.helpers import free_port, until

DB_TIMEOUT = 2.0
LIMIT = "ALTER USER app WITH MAX_USER_CONNECTIONS"
LOCK = "LOCK TABLES accounts WRITE; DO SLEEP(3)"


@dataclass
class Answer:
    """What one request came to; status 0 if nothing answered."""

    began: float
    ended: float
    status: int
    text: str

    def is_whole(self) -> bool:
        """Return whether it is a page with all of its accounts, the page that says there is none, or no answer."""
        right = self.text.count('<th scope="row">') == 50 if self.status == 200 else "Try again in a few" in self.text
        return not self.status or (right and self.text.endswith("</html>\n"))


@dataclass
class Load:
    """Four clients that ask for the page ten times a second each, and one that asks for the health twenty times."""

    stack: Stack
    pages: list[Answer] = field(default_factory=list)
    healths: list[Answer] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)

    def ask(self, path: str, pause: float, answers: list[Answer]) -> None:
        """Ask for a path, with a pause before each request, until the load is stopped."""
        while not self.stopped.wait(pause):
            began = time.monotonic()
            status, text = self.stack.get(path)
            answers.append(Answer(began, time.monotonic(), status, text))

    def since(self, moment: float, status: int) -> list[Answer]:
        """Return the answers to page requests that began after a moment and have a status."""
        return [answer for answer in self.pages if answer.began > moment and answer.status == status]

    def statuses(self) -> set[int]:
        """Return every status that a page request came to; each answer must be whole."""
        assert all(answer.is_whole() for answer in self.pages)
        return {answer.status for answer in self.pages}


@contextmanager
def load(stack: Stack) -> Iterator[Load]:
    """Give a load that has seen good pages, and stop it."""
    load = Load(stack)
    with ThreadPoolExecutor(5) as threads:
        clients = [threads.submit(load.ask, "/", 0.1, load.pages) for _ in range(4)]
        clients.append(threads.submit(load.ask, "/health", 0.05, load.healths))
        try:
            until(lambda: load.since(0, 200), "answering")
            yield load
        finally:
            load.stopped.set()
    for client in clients:
        client.result()  # raises what ended it


@contextmanager
def load_of_a_restart(stack: Stack) -> Iterator[Load]:
    """Give a load during which the app starts again: each answer is whole, and no row is lost."""
    rows, started = stack.sql("CHECKSUM TABLE accounts"), stack.page()["started"]
    with load(stack) as clients:
        yield clients
    assert clients.statuses() <= {0, 200, 503}
    assert stack.page()["started"] != started
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
    host = "" if user == "root" else "-h 127.0.0.1"
    command = f'MYSQL_PWD=$(cat /run/secrets/{user}/password) exec mysql -u {user} {host} -e "{statements}" cct'
    docker("exec", "-d", stack.container("db"), "sh", "-c", command)
    until(lambda: connections(stack, f"info = '{statements.rpartition('; ')[2]}'"), f"running: {statements}")


def change_the_password(stack: Stack) -> None:
    """Change the app's password in the database alone, as the app itself can."""
    stack.sql("ALTER USER USER() IDENTIFIED BY 'changed'", "app")
    kill_connections(stack)


def use_up_the_connections(stack: Stack) -> None:
    """Give the app's user one connection, which another client holds."""
    stack.sql(f"{LIMIT} 1")  # which counts those that are made from now on
    in_background(stack, "app", "DO SLEEP(60)")
    kill_connections(stack, "user = 'app' AND IFNULL(info, '') <> 'DO SLEEP(60)'")


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
    rows, started = stack.sql("CHECKSUM TABLE accounts"), stack.started()
    with load(stack) as clients:
        began = time.monotonic()
        start(stack)
        until(lambda: clients.since(began, 503), "noticed")
        end(stack)
        until(lambda: stack.health("db") == "healthy", "healthy", 120)
        healthy = time.monotonic()
        back = until(lambda: clients.since(healthy, 200), "back", 2.5)[0].ended - healthy
    slowest = max(answer.ended - answer.began for answer in clients.pages)
    lost = len(clients.since(0, 503))
    report(f"database {fault}: {lost} answers 503, slowest {slowest:.2f} s, back {back:.1f} s after it was healthy")
    assert clients.statuses() == {200, 503}
    assert slowest <= DB_TIMEOUT + 0.5
    assert {answer.status for answer in clients.healths} == {200}
    assert max(answer.ended - answer.began for answer in clients.healths) < DB_TIMEOUT / 2
    assert (stack.started(), stack.inspect("app")["State"]["Health"]["FailingStreak"]) == (started, 0)
    assert stack.sql("CHECKSUM TABLE accounts") == rows


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
    with load_of_a_restart(stack) as clients:
        began = time.monotonic()
        APP_FAULTS[fault](stack)
        until(lambda: clients.since(began, 0), "noticed")
        until(lambda: clients.since(clients.since(began, 0)[-1].ended, 200), "back")
        back = time.monotonic() - began
        until(lambda: stack.health() == "healthy", "healthy")
    report(f"app {fault}: back after {back:.1f} s")


def test_killed_healer_is_back_and_heals(stack: Stack) -> None:
    started = stack.started("autoheal")
    with load(stack) as clients:
        on_host(stack, "autoheal", "kill -KILL $pid")
        until(lambda: stack.started("autoheal") != started, "restarted")
    assert clients.statuses() == {200}
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
        docker(
            *("run", "--detach", "--privileged", "--name", engine, "--env", "DOCKER_TLS_CERTDIR="),
            *("--publish", f"127.0.0.1:{api}:2375", "--publish", f"127.0.0.1:{stack.port}:{stack.port}"),
            *("--volume", f"{stack.folder}:{stack.folder}", "docker:28-dind"),
        )
        docker("compose", "build", cwd=stack.folder, env=stack.env | {"DOCKER_HOST": ""})
        docker("compose", "pull", "--policy", "missing", "db", "autoheal")
        docker("save", "--output", f"{stack.folder}/images", *images)
        until(lambda: has_engine(engine), "up")
        docker("load", "--input", f"{stack.folder}/images", env=stack.env)
        stack.compose("up", "-d", "--wait")
        for end in ("stop", "kill"):
            with load_of_a_restart(stack) as clients:
                docker(end, engine)
                gone = time.monotonic()
                docker("start", engine)
                back = until(partial(clients.since, gone, 200), "back")[0].ended - gone
                until(lambda: stack.health() == "healthy" and stack.health("db") == "healthy", "healthy")
            report(f"engine, {end}: back {back:.1f} s after its start")
            assert stack.inspect("autoheal")["State"]["Running"]
    finally:
        docker("rm", "-f", "-v", engine)
        docker("image", "rm", "--force", *images[2:])
