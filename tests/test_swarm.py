"""The stack of docker-stack.yml on a real Swarm of three nodes: engines in containers, with a registry of their own.

The tests tell one story, in their order. The load comes from a client on the stack's network that never tries again:
each answer but a 200 counts. Where the kernel has no IPVS, neither the published port nor virtual IPs work: there the
client picks one of the tasks that DNS names.
"""

import functools
import http.client
import inspect
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.docker import docker, has_engine, require_engine, until

NAME = f"cct-swarm-{os.getpid()}"  # begins the name of all that is started
REGISTRY = f"{NAME}-registry"
NODES = MANAGER, DATA, SPARE = f"{NAME}-manager", f"{NAME}-data", f"{NAME}-spare"

Report = Callable[[str], None]


def swarm(*arguments: str) -> str:
    """Run a docker command on the manager and return its output."""
    return docker("exec", MANAGER, "docker", *arguments).strip()


def deploy(tag: str) -> None:
    """Deploy the stack and wait until all of it runs."""
    settings = ("--env", "REGISTRY=registry:5000/", "--env", f"TAG={tag}")
    command = ("docker", "stack", "deploy", "--detach=false", "--compose-file", "docker-stack.yml", "cct")
    docker("exec", "--workdir", "/cct", *settings, MANAGER, *command)


class Task(NamedTuple):
    """A container of a service, as Swarm sees it."""

    id: str
    image: str
    node: str
    wanted: bool


def running_tasks(service: str = "app") -> list[Task]:
    """Return the tasks that run, on the nodes that are left."""
    form = "{{.ID}} {{.Image}} {{.Node}} {{.DesiredState}} {{.CurrentState}}"
    tasks = [line.split()[:5] for line in swarm("service", "ps", f"cct_{service}", "--format", form).splitlines()]
    left = swarm("node", "ls", "--format", "{{.Hostname}} {{.Status}}").splitlines()
    return [
        Task(id, image, node, wanted == "Running")
        for id, image, node, wanted, state in tasks
        if state == "Running" and f"{node} Ready" in left
    ]


def settled(replicas: int = 3) -> set[Task]:
    """Return the running tasks of the app once they are as many as they should be and none is still stopping."""
    tasks = running_tasks()
    return set(tasks) if len(tasks) == replicas and all(task.wanted for task in tasks) else set()


@functools.cache
def balancer() -> str:
    """Return the name at which Swarm balances, as far as the kernel lets it."""
    with suppress(AssertionError):
        docker("exec", MANAGER, "test", "-e", "/proc/net/ip_vs")
        return "app"
    return "tasks.app"


def in_client(*command: str) -> list[str]:
    """Return the arguments of docker that run a command in the client."""
    container = swarm("ps", "--quiet", "--filter", "name=^client")
    return ["exec", "--interactive", MANAGER, "docker", "exec", "--interactive", container, *command]


GET = """
import sys, urllib.request
request = urllib.request.Request(sys.argv[1], headers={"Accept": "application/json"})
print(urllib.request.urlopen(request, timeout=10).read().decode())
"""


def get(host: str, path: str) -> str:
    """Return what the client gets; AssertionError where that is not a 200."""
    return docker(*in_client("python", "-c", GET, f"http://{host}{path}"))


def accounts() -> list[Any]:
    """Return all accounts; none where the database does not answer."""
    with suppress(AssertionError):
        pages = [json.loads(get(balancer(), f"/?after={after}")) for after in (0, 50)]
        return [account for page in pages for account in page["accounts"]]
    return []


def containers() -> set[str]:
    """Return the containers that answer at the addresses of the app's tasks."""
    addresses = {line.split()[0] for line in docker(*in_client("getent", "ahostsv4", "tasks.app")).splitlines()}
    return {json.loads(get(address, "/"))["container"] for address in addresses}


def request_until_stdin_ends(host: str, clients: int, pause: float) -> None:
    """Make requests, each client one after the other, then print what they got. This runs in the client.

    Half of them keep a connection for as long as the server does, the others make one for each request.
    """
    answers: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    over = threading.Event()

    def client(number: int) -> None:
        connection = None
        for turn in range(number, 20_000):
            try:
                if connection is None:
                    addresses = sorted(
                        str(info[4][0]) for info in socket.getaddrinfo(host, 80, type=socket.SOCK_STREAM)
                    )
                    connection = http.client.HTTPConnection(addresses[turn % len(addresses)], timeout=10)
                connection.request("GET", "/", headers={"Accept": "application/json"})
                response = connection.getresponse()
                page = response.read()
                if response.status == http.client.OK:
                    answers[json.loads(page)["container"]] += 1
                else:
                    failures[f"{response.status}"] += 1
                ended = response.will_close or number % 2 == 1
            except (OSError, http.client.HTTPException) as error:
                failures[repr(error)] += 1
                ended = True
            if connection and ended:
                connection.close()
                connection = None
            if over.wait(pause):
                return

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    print("started", flush=True)
    sys.stdin.read()
    over.set()
    for thread in threads:
        thread.join()
    print(json.dumps([answers, failures]))


class Load:
    """What the clients got."""

    answers: dict[str, int]
    failures: dict[str, int]

    def __str__(self) -> str:
        return f"{sum(self.failures.values())} of {sum((self.answers | self.failures).values())} requests failed"


@contextmanager
def load(clients: int = 8, pause: float = 0.05) -> Iterator[Load]:
    """Keep the app busy for as long as the context lasts."""
    imports = "import http.client, json, socket, sys, threading\nfrom collections import Counter\n"
    program = f"{imports}{inspect.getsource(request_until_stdin_ends)}\n"
    command = in_client("python", "-c", f"{program}request_until_stdin_ends('{balancer()}', {clients}, {pause})")
    result = Load()
    with subprocess.Popen(["docker", *command], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == "started\n"
        yield result
        result.answers, result.failures = json.loads(process.communicate(timeout=60)[0])


# ---------------------------------------------------------------- the swarm


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Report:
    """Give a function that shows what was measured."""

    def show(line: str) -> None:
        with capsys.disabled():
            print(f"\n{line}", end=" ")

    return show


def push_images(registry: str, sick: Path) -> Iterator[str]:
    """Fill the registry: two releases, one that never gets healthy, and the database; give each image's name."""
    for tag in ("1", "2"):
        env = os.environ | {"REGISTRY": f"{registry}/", "TAG": tag}
        yield from (f"{registry}/cct-{service}:{tag}" for service in ("app", "seeder"))
        docker("compose", "build", env=env)
        docker("compose", "push", env=env)
    yield (app := f"{registry}/cct-app:sick")
    (sick / "Dockerfile").write_text(f"FROM {registry}/cct-app:1\nHEALTHCHECK --interval=1s --retries=1 CMD false\n")
    docker("build", "--tag", app, str(sick))
    docker("push", app)
    yield (mysql := f"{registry}/library/mysql:9.7")
    docker("compose", "pull", "--policy", "missing", "db")
    docker("tag", "mysql:9.7", mysql)
    docker("push", mysql)


@pytest.fixture(scope="module")
def swarm_of_three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Have three nodes, and all images in a registry from which they pull."""
    require_engine()
    images: list[str] = []
    try:
        docker("network", "create", "--internal", NAME)
        docker("run", "--detach", "--name", REGISTRY, "--publish", "127.0.0.1::5000", "registry:2")
        docker("network", "connect", "--alias", "registry", NAME, REGISTRY)
        for node in NODES:
            docker(
                *("run", "--detach", "--privileged", "--name", node, "--hostname", node, "--network", NAME),
                *("--env", "DOCKER_TLS_CERTDIR=", "docker:28-dind"),
                *("--insecure-registry", "registry:5000", "--registry-mirror", "http://registry:5000"),
            )
        images.extend(push_images(docker("port", REGISTRY, "5000").strip(), tmp_path_factory.mktemp("sick")))
        for node in NODES:
            until(functools.partial(has_engine, node), f"{node} up")
        address = docker("exec", MANAGER, "hostname", "-i").strip()
        swarm("swarm", "init", "--advertise-addr", address)
        token = swarm("swarm", "join-token", "--quiet", "worker")
        for node in (DATA, SPARE):
            docker("exec", node, "docker", "swarm", "join", "--token", token, f"{address}:2377")
        yield
    finally:
        for removal in (["rm", "-f", "-v", REGISTRY, *NODES], ["network", "rm", NAME], ["image", "rm", *images]):
            subprocess.run(["docker", *removal], check=False, capture_output=True)


@pytest.fixture(scope="module")
def stack(swarm_of_three: None) -> None:
    """Deploy the stack as the README says, and a client on its network."""
    swarm("node", "update", "--label-add", "cct-data=true", DATA)
    secrets = "for user in root seeder app; do openssl rand -hex 24 | docker secret create cct-$user-password -; done"
    docker("exec", MANAGER, "sh", "-c", secrets)
    docker("exec", MANAGER, "mkdir", "/cct")
    for file in ("docker-stack.yml", "users.sh"):
        docker("cp", file, f"{MANAGER}:/cct/{file}")
    deploy("1")
    swarm(
        *("service", "create", "--quiet", "--name", "client", "--no-healthcheck", "--network", "cct_web"),
        *("--constraint", "node.role==manager", "registry:5000/cct-app:1", "sleep", "infinity"),
    )


# ---------------------------------------------------------------- the tests


@pytest.mark.parametrize(
    ("settings", "image"),
    [({}, "cct-app:latest"), ({"REGISTRY": "registry.example.com/", "TAG": "1"}, "registry.example.com/cct-app:1")],
)
def test_stack_file_is_valid(settings: dict[str, str], image: str) -> None:
    if shutil.which("docker") is None and os.environ.get("REQUIRE_DOCKER") != "1":
        pytest.skip("needs the docker command")
    config = docker("stack", "config", "--compose-file", "docker-stack.yml", env=os.environ | settings)
    assert f"image: {image}\n" in config


def test_seeder_seeds(stack: None) -> None:
    assert [account["id"] for account in accounts()] == list(range(1, 101))


def test_replicas_answer_on_every_node(stack: None, report: Report) -> None:
    assert {task.node for task in settled()} == set(NODES)
    assert len(containers()) == 3
    if balancer() == "app":
        for node in NODES:
            assert get(docker("exec", node, "hostname", "-i").strip() + ":5000", "/health") == "healthy\n\n"
    else:
        report("no IPVS in this kernel: the client finds the tasks by DNS round robin, not through the published port")


def test_database_is_on_no_network_but_its_own(stack: None) -> None:
    form = "{{range $name, $_ := .NetworkSettings.Networks}}{{$name}} {{end}}"
    command = f"docker inspect --format '{form}' $(docker ps --quiet --filter name=cct_db)"
    assert docker("exec", DATA, "sh", "-c", command).split() == ["cct_database"]


@pytest.mark.parametrize(
    ("service", "user", "passwords"), [("app", "10001", ["app"]), ("db", "999", ["app", "root", "seeder"])]
)
def test_nobody_else_reads_the_passwords(stack: None, service: str, user: str, passwords: list[str]) -> None:
    files = "sh -c 'stat -c \"%u %a %n\" /run/secrets/*/password'"
    command = f"docker exec $(docker ps --quiet --filter name=cct_{service}) {files}"
    assert docker("exec", DATA, "sh", "-c", command).splitlines() == [
        f"{user} 400 /run/secrets/{name}/password" for name in passwords
    ]


def test_unhealthy_replica_is_replaced_without_a_failed_request(stack: None, report: Report) -> None:
    before, answered = settled(), containers()
    with load() as requests:
        get(balancer(), "/make-unhealthy")
        seconds = until(lambda: settled() - before, "replaced", 120)
    report(f"unhealthy: replaced after {seconds:.1f} s, {requests}")
    assert requests.failures == {}
    assert len(settled() & before) == 2
    assert len(containers() & answered) == 2


def test_rolling_update_fails_no_request(stack: None, report: Report) -> None:
    before = settled()
    with load() as requests:
        began = time.monotonic()
        deploy("2")
        until(settled, "settled")
        seconds = time.monotonic() - began
    report(f"update of 3 replicas: {seconds:.1f} s, {requests}")
    assert requests.failures == {}
    assert not settled() & before
    assert {task.image for task in settled()} == {"registry:5000/cct-app:2"}


def test_seeder_of_the_update_left_the_accounts_alone(stack: None) -> None:
    assert "nothing to do" in swarm("service", "logs", "--raw", "cct_seeder")
    assert [account["id"] for account in accounts()] == list(range(1, 101))


def test_update_that_never_gets_healthy_is_rolled_back_without_a_failed_request(stack: None, report: Report) -> None:
    with load() as requests:
        began = time.monotonic()
        swarm("service", "update", "--quiet", "--image", "registry:5000/cct-app:sick", "cct_app")
        until(settled, "settled")
        seconds = time.monotonic() - began
    report(f"update that never gets healthy: rolled back after {seconds:.1f} s, {requests}")
    assert swarm("service", "inspect", "--format", "{{.UpdateStatus.State}}", "cct_app") == "rollback_completed"
    assert requests.failures == {}
    assert {task.image for task in settled()} == {"registry:5000/cct-app:2"}


def test_scale_down_fails_no_request(stack: None, report: Report) -> None:
    with load() as requests:
        swarm("service", "scale", "--detach", "cct_app=2")
        seconds = until(lambda: settled(2), "scaled down")
    report(f"scale from 3 to 2: {seconds:.1f} s, {requests}")
    assert requests.failures == {}


def test_scale_up_uses_the_free_node(stack: None) -> None:
    swarm("service", "scale", "--detach", "cct_app=3")
    until(settled, "scaled up")
    assert {task.node for task in settled()} == set(NODES)


def test_killed_database_comes_back_with_its_accounts(stack: None, report: Report) -> None:
    before, killed = accounts(), running_tasks("db")
    docker("exec", DATA, "sh", "-c", "docker kill $(docker ps --quiet --filter name=cct_db)")
    seconds = until(lambda: set(running_tasks("db")) - set(killed), "replaced") + until(accounts, "answering")
    report(f"database killed: pages again after {seconds:.1f} s")
    assert accounts() == before


def test_tasks_of_a_killed_node_run_elsewhere(stack: None, report: Report) -> None:
    before = accounts()
    with load() as requests:
        docker("kill", SPARE)
        seconds = until(lambda: {task.node for task in settled()} == {MANAGER, DATA}, "elsewhere", 120)
    report(f"node killed: its tasks run elsewhere after {seconds:.1f} s, {requests}")
    assert len(containers()) == 3
    assert accounts() == before


def test_every_replica_takes_its_part_of_the_load(stack: None, report: Report) -> None:
    rates = []
    for replicas in (1, 2, 3):
        swarm("service", "scale", "--detach", f"cct_app={replicas}")
        until(functools.partial(settled, replicas), f"{replicas} replicas")
        for node in {task.node for task in settled(replicas)}:  # slowed down, lest the client be the limit
            slow = "docker ps --quiet --filter name=cct_app | xargs docker update --cpus 0.05"
            docker("exec", node, "sh", "-c", slow)
        with load(clients=32, pause=0) as requests:
            time.sleep(4)
        rates.append(f"{sum(requests.answers.values()) / 4:.0f}")
        assert len(requests.answers) == replicas
    report(f"requests a second of 1, 2 and 3 replicas with a twentieth of a core each: {', '.join(rates)}")
