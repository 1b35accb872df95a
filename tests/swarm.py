"""A Swarm of three nodes in a real engine: engines in containers, with a registry of their own.

Where the kernel has no IPVS, neither the published port nor virtual IPs work: there the client picks one of the tasks
that DNS names.
"""

import functools
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from subprocess import PIPE, Popen, run
from typing import NamedTuple

from tests.conftest import Report
from tests.docker import docker, has_engine
from tests.helpers import ROOT, until

NAME = f"cct-swarm-{os.getpid()}"  # begins the name of all that is started
REGISTRY, MYSQL = f"{NAME}-registry", f"{NAME}-mysql"
NODES = MANAGER, DATA, SPARE = "node-1", "node-2", "node-3"

DOC = (ROOT / "docs" / "swarm.md").read_text()
CODE = r"^```sh\n(.+?)\n```$|^\| [^|\n]+ \| `([^`\n]+)` \|"  # a block, or the second cell of a table's row
PRINTED = [block or cell for block, cell in re.findall(CODE, DOC, re.MULTILINE | re.DOTALL)]
used: set[str] = set()


def printed(start: str) -> str:
    """Return the command that docs/swarm.md prints and that starts like this."""
    command: str = next(command for command in PRINTED if command.startswith(start))
    used.add(command)
    return command


def on(node: str, command: str) -> str:
    """Run shell commands on a node and return their output; AssertionError if one fails."""
    return docker("exec", f"{NAME}-{node}", "sh", "-ec", command).strip()


class Task(NamedTuple):
    """A container of a service, as Swarm sees it."""

    wanted: str
    id: str
    image: str
    node: str


def settled(replicas: int = 3, service: str = "app") -> set[Task]:
    """Return the tasks that run on the nodes that are left, once they are so many and none of them is stopping."""
    form = "{{.CurrentState}} {{.DesiredState}} {{.ID}} {{.Image}} {{.Node}}"
    lines = on(MANAGER, f"{printed('docker service ps').replace('app', service)} --format '{form}'").splitlines()
    left = on(MANAGER, "docker node ls --format '{{.Hostname}} {{.Status}}'").splitlines()
    running = {Task(*line.split()[-4:]) for line in lines if line.startswith("Running")}
    tasks = {task for task in running if f"{task.node} Ready" in left}
    return tasks if len(tasks) == replicas and all(task.wanted == "Running" for task in tasks) else set()


@functools.cache
def balancer() -> str:
    """Return the name at which Swarm balances, as far as the kernel lets it."""
    return on(MANAGER, "test -e /proc/net/ip_vs && echo app || echo tasks.app")


IN_CLIENT = "docker exec --interactive $(docker ps --quiet --filter name=^client)"
GET = """
import sys, urllib.request
request = urllib.request.Request(sys.argv[1], headers={"Accept": "application/json"})
print(urllib.request.urlopen(request, timeout=10).read().decode())
"""


def start_client() -> None:
    """Start a container on the stack's network that makes the requests."""
    options = "--name client --no-healthcheck --network cct_web --constraint node.role==manager"
    on(MANAGER, f"docker service create --quiet {options} registry:5000/cct-app:1 sleep infinity")


def get(host: str, path: str) -> str:
    """Return what the client gets; AssertionError if that is not a 200."""
    return on(MANAGER, f"{IN_CLIENT} python -c '{GET}' 'http://{host}{path}'")


def account_ids() -> list[int]:
    """Return the ids of all accounts; none if the database does not answer."""
    with suppress(AssertionError):
        pages = [json.loads(get(balancer(), f"/?after={after}")) for after in (0, 50)]
        return [account["id"] for page in pages for account in page["accounts"]]
    return []


def containers() -> set[str]:
    """Return the containers that answer at the addresses of the app's tasks."""
    addresses = {line.split()[0] for line in on(MANAGER, f"{IN_CLIENT} getent ahostsv4 tasks.app").splitlines()}
    return {json.loads(get(address, "/"))["container"] for address in addresses}


class Load:
    """What the clients got, known when their load has ended."""

    answers: dict[str, int]  # by container
    failures: dict[str, int]  # by kind


@contextmanager
def load(report: Report, event: str, may_fail: str = "nothing", options: str = "8 0.05") -> Iterator[Load]:
    """Keep the app busy as long as the context lasts; AssertionError if what fails has no `may_fail` in its kind."""
    command = f'{IN_CLIENT} python -c "$(cat client.py)" {balancer()} {options}'
    in_manager = ["docker", "exec", "--interactive", f"{NAME}-{MANAGER}", "sh", "-c", command]
    result = Load()
    with Popen(in_manager, stdin=PIPE, stdout=PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "started\n"
        began = time.monotonic()
        yield result
        seconds = time.monotonic() - began
        result.answers, result.failures = json.loads(process.communicate(timeout=60)[0])
    failed = sum(result.failures.values())
    report(f"{event}: {seconds:.1f} s, {failed} of {failed + sum(result.answers.values())} requests failed")
    assert all(may_fail in kind for kind in result.failures), result.failures


def push_images(registry: str) -> Iterator[str]:
    """Fill the registry with two releases and the database; give each image's name."""
    for tag in ("1", "2"):
        yield from (f"{registry}/cct-{service}:{tag}" for service in ("app", "seeder"))
        env = os.environ | {"COMPOSE_PROJECT_NAME": "cct", "REGISTRY": f"{registry}/", "TAG": tag}
        run(["sh", "-ec", printed("docker compose build")], cwd=ROOT, env=env, check=True, timeout=300)
    yield (mysql := f"{registry}/library/mysql:9.7")
    docker("compose", "pull", "--policy", "missing", "db")
    docker("tag", "mysql:9.7", mysql)
    docker("push", mysql)


@contextmanager
def running_swarm() -> Iterator[None]:
    """Have the stack of docs/swarm.md on three nodes, which pull from a registry, and a client on its network."""
    images: list[str] = []
    try:
        docker("network", "create", "--internal", NAME)
        docker("run", "--detach", "--name", REGISTRY, "--publish", "127.0.0.1::5000", "registry:2")
        docker("network", "connect", "--alias", "registry", NAME, REGISTRY)
        for node in NODES:
            docker(
                *("run", "--detach", "--privileged", "--name", f"{NAME}-{node}", "--hostname", node),
                *("--network", NAME, "--workdir", "/cct", "--env", "DOCKER_TLS_CERTDIR="),
                *("--env", "REGISTRY=registry:5000/", "--env", "TAG=1", "docker:28-dind"),
                *("--insecure-registry", "registry:5000", "--registry-mirror", "http://registry:5000"),
            )
        images.extend(push_images(docker("port", REGISTRY, "5000").strip()))
        for node in NODES:
            until(functools.partial(has_engine, f"{NAME}-{node}"), f"{node} up")
        on(MANAGER, printed("docker swarm init"))
        for node in (DATA, SPARE):
            on(node, on(MANAGER, "docker swarm join-token worker | grep join"))
        for file in ("deploy", "users.sh", "tests/client.py"):
            docker("cp", file, f"{NAME}-{MANAGER}:/cct")
        on(MANAGER, printed("docker node update"))
        on(MANAGER, printed("docker stack deploy"))
        start_client()
        yield
    finally:
        nodes = [f"{NAME}-{node}" for node in NODES]
        for removal in (["rm", "-f", "-v", REGISTRY, MYSQL, *nodes], ["network", "rm", NAME], ["image", "rm", *images]):
            run(["docker", *removal], check=False, capture_output=True)
