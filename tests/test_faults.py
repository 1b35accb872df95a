"""Faults of every part of the real stack under a steady load: what clients see, and the recovery without a hand."""

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.docker import Stack, docker, has_engine, require_engine, running_stack, until
from tests.local import free_port

DB_TIMEOUT = 2.0
CLIENTS = 4


@dataclass
class Answer:
    """What one request came to: at `ended` after `seconds`; the status is 0 where nothing answered."""

    ended: float
    seconds: float
    status: int
    whole: bool


class Load:
    """Clients that ask for the page one request after the other, ten a second each, and one that probes the health."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.answers: list[Answer] = []
        self.probes: list[tuple[int, float]] = []  # status and seconds
        self.stopped = threading.Event()
        self.threads = [threading.Thread(target=target) for target in [self.probe, *[self.ask] * CLIENTS]]

    def ask(self) -> None:
        """Ask until the load is stopped."""
        while not self.stopped.wait(0.1):
            began = time.monotonic()
            status, text = self.get("/")
            ended = time.monotonic()
            right = text.count('<th scope="row">') == 50 if status == 200 else "The database does not answer." in text
            self.answers.append(Answer(ended, ended - began, status, right and text.endswith("</html>\n")))

    def probe(self) -> None:
        """Ask for the health, twenty times a second, until the load is stopped."""
        while not self.stopped.wait(0.05):
            began = time.monotonic()
            status, _ = self.get("/health")
            self.probes.append((status, time.monotonic() - began))

    def get(self, path: str) -> tuple[int, str]:
        """Return the status and the text of an answer, 0 where there is none."""
        try:
            return self.stack.get(path)
        except OSError:
            return 0, ""

    def since(self, moment: float, status: int) -> list[Answer]:
        """Return the answers to requests that began after a moment and have a status."""
        return [answer for answer in self.answers if answer.ended - answer.seconds > moment and answer.status == status]


@contextmanager
def load(stack: Stack) -> Iterator[Load]:
    """Give a load that has seen good pages, and stop it."""
    load = Load(stack)
    for thread in load.threads:
        thread.start()
    try:
        until(lambda: load.since(0, 200), "answering")
        yield load
    finally:
        load.stopped.set()
        for thread in load.threads:
            thread.join()


@contextmanager
def load_of_a_restart(stack: Stack) -> Iterator[Load]:
    """Give a load during which the app starts again: each answer is whole, and no row is lost."""
    rows, started = stack.sql("CHECKSUM TABLE accounts"), stack.page()["started"]
    with load(stack) as clients:
        yield clients
    assert {answer.status for answer in clients.answers} <= {0, 200, 503}
    assert all(answer.whole for answer in clients.answers if answer.status)
    assert stack.page()["started"] != started
    assert stack.sql("CHECKSUM TABLE accounts") == rows


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    require_engine()
    with running_stack(tmp_path_factory.mktemp("faults") / "cct") as stack:
        yield stack


def on_host(stack: Stack, service: str, command: str) -> None:
    """Run a shell command about a service's first process, `$pid`, outside of its container and past the engine."""
    pid = stack.inspect(service)["State"]["Pid"]
    shell = ("python:3.14-slim", "sh", "-c", f"pid={pid}; {command}")
    docker("run", "--rm", "--privileged", "--pid=host", *shell)


def kill_connections(stack: Stack, which: str = "TRUE") -> None:
    """End connections of the app's user in the database."""
    connections = stack.sql(f"SELECT id FROM information_schema.processlist WHERE user = 'app' AND {which}").split()
    stack.sql(
        "".join(f"KILL {connection};" for connection in connections), "root", "--force"
    )  # one may have ended by itself


def network(stack: Stack, verb: str) -> None:
    """Connect the app to the database's network, or disconnect it."""
    docker("network", verb, f"{stack.name}_database", stack.container("app"))


def in_background(stack: Stack, user: str, statement: str) -> None:
    """Execute a statement as a user and do not wait for its end."""
    host = "" if user == "root" else "-h 127.0.0.1"
    command = f'MYSQL_PWD=$(cat /run/secrets/{user}/password) exec mysql -u {user} {host} -e "{statement}" cct'
    docker("exec", "-d", stack.container("db"), "sh", "-c", command)


def lock_the_table(stack: Stack) -> None:
    """Lock the table for three seconds."""
    in_background(stack, "root", "LOCK TABLES accounts WRITE; DO SLEEP(3)")
    until(lambda: stack.sql("SELECT id FROM information_schema.processlist WHERE info = 'DO SLEEP(3)'"), "locked")


def change_the_password(stack: Stack) -> None:
    """Change the app's password in the database alone."""
    stack.sql("ALTER USER app IDENTIFIED BY 'changed'")
    kill_connections(stack)


def restore_the_password(stack: Stack) -> None:
    """Give the app's user the password of its file again."""
    password = stack.exec("app", "cat", "/run/secrets/app/password").strip()
    stack.sql(f"ALTER USER app IDENTIFIED BY '{password}'")


def use_up_the_connections(stack: Stack) -> None:
    """Give the app's user one connection, which another client holds."""
    stack.sql("ALTER USER app WITH MAX_USER_CONNECTIONS 1")  # which counts those that are made from now on
    in_background(stack, "app", "DO SLEEP(600)")
    until(lambda: stack.sql("SELECT id FROM information_schema.processlist WHERE info = 'DO SLEEP(600)'"), "held")
    kill_connections(stack, "IFNULL(info, '') <> 'DO SLEEP(600)'")


def free_the_connections(stack: Stack) -> None:
    """End who holds the connection, and give as many as usual."""
    stack.sql("ALTER USER app WITH MAX_USER_CONNECTIONS 0")
    kill_connections(stack)


Fault = Callable[[Stack], object]
DATABASE_FAULTS: dict[str, tuple[Fault, Fault]] = {
    "stopped": (lambda stack: stack.compose("stop", "db"), lambda stack: stack.compose("start", "db")),
    "killed": (lambda stack: on_host(stack, "db", "kill -KILL $pid"), lambda _: None),
    "paused": (lambda stack: stack.compose("pause", "db"), lambda stack: stack.compose("unpause", "db")),
    "cut off": (lambda stack: network(stack, "disconnect"), lambda stack: network(stack, "connect")),
    "restarted": (lambda stack: stack.compose("restart", "db"), lambda _: None),
    "out of connections": (use_up_the_connections, free_the_connections),
    "locked": (lock_the_table, lambda _: None),
    "without the table": (
        lambda stack: stack.sql("RENAME TABLE accounts TO gone"),
        lambda stack: stack.sql("RENAME TABLE gone TO accounts"),
    ),
    "with another password": (change_the_password, restore_the_password),
}


@pytest.mark.parametrize("fault", DATABASE_FAULTS)
def test_database(stack: Stack, fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    start, end = DATABASE_FAULTS[fault]
    rows, state = stack.sql("CHECKSUM TABLE accounts"), stack.inspect("app")["State"]["StartedAt"]
    with load(stack) as clients:
        began = time.monotonic()
        start(stack)
        until(lambda: clients.since(began, 503), "noticed")
        end(stack)
        until(lambda: stack.health("db") == "healthy", "healthy", 120)
        healthy = time.monotonic()
        back = until(lambda: clients.since(healthy, 200), "back", 2.5)
    slowest = max(answer.seconds for answer in clients.answers)
    lost = sum(answer.status == 503 for answer in clients.answers)
    with capsys.disabled():
        print(
            f"\ndatabase {fault}: {lost} answers 503, slowest {slowest:.2f} s, back {back:.1f} s after it was healthy"
        )
    assert {answer.status for answer in clients.answers} == {200, 503}
    assert all(answer.whole for answer in clients.answers)
    assert slowest <= DB_TIMEOUT + 0.5
    assert {status for status, _ in clients.probes} == {200}
    assert max(seconds for _, seconds in clients.probes) < DB_TIMEOUT / 2
    app = stack.inspect("app")["State"]
    assert (app["StartedAt"], app["Health"]["FailingStreak"]) == (state, 0)
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
def test_app(stack: Stack, fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    with load_of_a_restart(stack) as clients:
        began = time.monotonic()
        APP_FAULTS[fault](stack)
        until(lambda: clients.since(began, 0), "noticed")
        until(lambda: clients.since(max(a.ended for a in clients.answers if not a.status), 200), "back")
        back = time.monotonic() - began
        until(lambda: stack.health() == "healthy", "healthy")
    with capsys.disabled():
        print(f"\napp {fault}: back after {back:.1f} s")


def test_killed_healer_is_back_and_heals(stack: Stack) -> None:
    started = stack.inspect("autoheal")["State"]["StartedAt"]
    with load(stack) as clients:
        on_host(stack, "autoheal", "kill -KILL $pid")
        until(lambda: stack.inspect("autoheal")["State"]["StartedAt"] != started, "restarted")
    assert {answer.status for answer in clients.answers} == {200}
    started = stack.page()["started"]
    stack.get("/make-unhealthy")
    until(lambda: stack.health() == "unhealthy", "unhealthy")
    until(lambda: stack.health() == "healthy", "healed")
    assert stack.page()["started"] != started


def test_killed_seeder_is_back_and_seeds(stack: Stack) -> None:
    stack.sql("TRUNCATE accounts")
    lock_the_table(stack)
    stack.compose("start", "seeder")
    on_host(stack, "seeder", "kill -KILL $pid")
    until(lambda: stack.sql("SELECT COUNT(*) FROM accounts") == "100\n", "seeded")
    assert stack.inspect("seeder")["RestartCount"] == 1


def test_full_disk_of_the_database(tmp_path: Path) -> None:
    require_engine()
    stack = Stack(tmp_path / "cct", SEED_ACCOUNTS="100")
    volume = "{driver_opts: {type: tmpfs, device: tmpfs, o: size=300m}}"
    (stack.folder / "docker-compose.override.yml").write_text(f"volumes: {{data: {volume}}}\n")
    try:
        stack.up()
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
        assert len(stack.page()["accounts"]) == 50
        assert stack.sql("SELECT COUNT(*) FROM accounts") == "100\n"
    finally:
        stack.down()


@pytest.fixture(scope="module")
def engine_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Stack]]:
    """Give an engine in a container, by name, and a stack that runs there."""
    require_engine()
    api = free_port()
    stack = Stack(tmp_path_factory.mktemp("engine") / "cct", DOCKER_HOST=f"tcp://127.0.0.1:{api}")
    images = ["mysql:9.7", "willfarrell/autoheal:1.2.0", *(f"cct-{name}:{stack.name}" for name in ("app", "seeder"))]
    name = f"{stack.name}-engine"
    try:
        docker(
            *("run", "--detach", "--privileged", "--name", name, "--env", "DOCKER_TLS_CERTDIR="),
            *("--publish", f"127.0.0.1:{api}:2375", "--publish", f"127.0.0.1:{stack.port}:{stack.port}"),
            *("--volume", f"{stack.folder}:{stack.folder}", "docker:28-dind"),
        )
        docker("compose", "build", cwd=stack.folder, env=stack.env | {"DOCKER_HOST": ""})
        docker("compose", "pull", "--policy", "missing", "db", "autoheal")
        docker("save", "--output", f"{stack.folder}/images", *images)
        until(lambda: has_engine(name), "up")
        docker("load", "--input", f"{stack.folder}/images", env=stack.env)
        stack.compose("up", "-d", "--wait")
        yield name, stack
    finally:
        for removal in (["rm", "-f", "-v", name], ["image", "rm", *images[2:]]):
            subprocess.run(["docker", *removal], check=False, capture_output=True)


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_engine(engine_of_its_own: tuple[str, Stack], end: str, capsys: pytest.CaptureFixture[str]) -> None:
    engine, stack = engine_of_its_own
    with load_of_a_restart(stack) as clients:
        docker(end, engine)
        gone = time.monotonic()
        docker("start", engine)
        until(lambda: clients.since(gone, 200), "back")
        back = time.monotonic() - gone
        until(lambda: stack.health() == "healthy" and stack.health("db") == "healthy", "healthy")
    with capsys.disabled():
        print(f"\nengine {end}: back {back:.1f} s after its start")
    assert stack.inspect("autoheal")["State"]["Running"]
