"""The stack of docs/swarm.md on a real Swarm: three engines in containers, with a registry of their own.

The tests tell one story, in their order, with the commands that docs/swarm.md prints. Where the kernel has no IPVS,
neither the published port nor virtual IPs work: there the client picks one of the tasks that DNS names.
"""

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from subprocess import run
from typing import NamedTuple

import pytest

from tests import client
from tests.conftest import Report
from tests.docker import docker, require_engine, start_engine, start_mysql
from tests.helpers import ROOT, until

NAME = f"cct-swarm-{os.getpid()}"  # begins the name of all that is started
REGISTRY, MYSQL = f"{NAME}-registry", f"{NAME}-mysql"
NODES = MANAGER, DATA, SPARE = "node-1", "node-2", "node-3"
IDS = list(range(1, 101))  # of the accounts

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


@cache
def balancer() -> str:
    """Return the name at which Swarm balances, as far as the kernel lets it."""
    return on(MANAGER, "test -e /proc/net/ip_vs && echo app || echo tasks.app")


IN_CLIENT = "docker exec --interactive $(docker ps --quiet --filter name=^client)"


def start_client() -> None:
    """Start a container on the stack's network that makes the requests."""
    options = "--name client --no-healthcheck --network cct_web --constraint node.role==manager"
    on(MANAGER, f"docker service create --quiet {options} registry:5000/cct-app:1 sleep infinity")


def get(host: str, path: str) -> str:
    """Return what the client gets; AssertionError if nothing answers."""
    return on(MANAGER, f"{IN_CLIENT} python -c '{client.GET}' {host} '{path}'")


def account_ids() -> list[int]:
    """Return the ids of all accounts; none if the database does not answer."""
    with suppress(AssertionError, KeyError):
        pages = [json.loads(get(balancer(), f"/?after={after}")) for after in (0, 50)]
        return [account["id"] for page in pages for account in page["accounts"]]
    return []


def containers() -> set[str]:
    """Return the containers that answer at the addresses of the app's tasks."""
    addresses = {line.split()[0] for line in on(MANAGER, f"{IN_CLIENT} getent ahostsv4 tasks.app").splitlines()}
    return {json.loads(get(address, "/"))["container"] for address in addresses}


def load(report: Report, event: str, *options: str) -> client.Load:
    shell = ["docker", "exec", "--interactive", f"{NAME}-{MANAGER}", "sh", "-c", f'{IN_CLIENT} "$@"', "sh"]
    return client.load(shell, balancer(), report, event, *options)


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


@pytest.fixture(scope="module")
def stack() -> Iterator[None]:
    """Have the stack of docs/swarm.md on three nodes, which pull from a registry, and a client on its network."""
    require_engine()
    images: list[str] = []
    try:
        docker("network", "create", "--internal", NAME)
        docker("run", "--detach", "--name", REGISTRY, "--publish", "127.0.0.1::5000", "registry:2")
        docker("network", "connect", "--alias", "registry", NAME, REGISTRY)
        for node in NODES:
            start_engine(
                *(f"{NAME}-{node}", "--hostname", node, "--network", NAME, "--workdir", "/cct"),
                *("--env", "REGISTRY=registry:5000/", "--env", "TAG=1", "docker:28-dind"),
                *("--insecure-registry", "registry:5000", "--registry-mirror", "http://registry:5000"),
            )
        images.extend(push_images(docker("port", REGISTRY, "5000").strip()))
        on(MANAGER, printed("docker swarm init"))
        for node in (DATA, SPARE):
            on(node, on(MANAGER, "docker swarm join-token worker | grep join"))
        for file in ("deploy", "users.sh"):
            docker("cp", file, f"{NAME}-{MANAGER}:/cct")
        on(MANAGER, printed("docker node update"))
        on(MANAGER, printed("docker stack deploy"))
        start_client()
        yield
    finally:
        nodes = [f"{NAME}-{node}" for node in NODES]
        for removal in (["rm", "-f", "-v", REGISTRY, MYSQL, *nodes], ["network", "rm", NAME], ["image", "rm", *images]):
            run(["docker", *removal], check=False, capture_output=True)


def test_stack_file_is_valid_without_settings() -> None:
    require_engine()
    assert "image: cct-app:latest\n" in docker("stack", "config", "--compose-file", "deploy/docker-stack.yml")


def test_seeder_seeds_and_replicas_answer_on_every_node(stack: None, report: Report) -> None:
    assert account_ids() == IDS
    assert {task.node for task in settled()} == set(NODES)
    assert len(containers()) == 3
    if balancer() == "app":
        for node in NODES:
            assert get(f"{on(node, 'hostname -i')}:5000", "/health") == "healthy\n\n"
    else:
        report("no IPVS in this kernel: the client finds the tasks by DNS round robin, not through the published port")


def test_services_have_the_least_power_and_networks(stack: None) -> None:
    form = "{{.ReadonlyRootfs}} {{.CapDrop}} {{.CapAdd}} {{.Memory}} {{.PidsLimit}}{{end}}"
    networks = "{{range $name, $_ := .NetworkSettings.Networks}} {{$name}}{{end}}"
    form = '{{index .Config.Labels "com.docker.swarm.service.name"}} {{with .HostConfig}}' + form + networks
    command = f"docker inspect --format '{form}' $(docker ps --all --quiet --filter name=cct_)"
    assert {line for node in NODES for line in on(node, command).splitlines()} == {
        "cct_app true [ALL] [] 268435456 64 cct_database cct_web ingress",
        "cct_seeder true [ALL] [] 268435456 64 cct_database cct_web",
        "cct_db true [ALL] [CAP_CHOWN CAP_DAC_OVERRIDE CAP_FOWNER CAP_SETGID CAP_SETUID] 1073741824 512 cct_database",
    }


def test_nobody_else_reads_the_passwords(stack: None) -> None:
    look = "docker exec $(docker ps --quiet --filter name=cct_{}) sh -c 'stat -c \"%u %a %n\" /run/secrets/*/password'"
    file = "{} 400 /run/secrets/{}/password".format
    assert on(DATA, look.format("app")) == file(10001, "app")
    assert on(DATA, look.format("db")).splitlines() == [file(999, user) for user in ("app", "root", "seeder")]


def test_unhealthy_replica_is_replaced_without_a_failed_request(stack: None, report: Report) -> None:
    before, answered = settled(), containers()
    with load(report, "unhealthy replica replaced"):
        get(balancer(), "/make-unhealthy")
        until(lambda: settled() - before, "replaced", 120)
    assert len(settled() & before) == 2
    assert len(containers() & answered) == 2


def test_updates_fail_no_request_and_leave_the_accounts_alone(stack: None, report: Report) -> None:
    sick = "--image registry:5000/cct-app:2 --health-cmd false --health-interval 1s --health-retries 1"
    for event, command, tag in (
        ("update of 3 replicas", f"export TAG=2; {printed('docker stack deploy')}", 2),
        ("going back", printed("docker service rollback"), 1),
        ("update that never gets healthy, and is rolled back", f"docker service update --quiet {sick} cct_app", 1),
    ):
        with load(report, event):
            on(MANAGER, command)
            until(settled, "settled")
        assert {task.image for task in settled()} == {f"registry:5000/cct-app:{tag}"}
    assert on(MANAGER, printed("docker service inspect")) == "rollback_completed"
    assert "nothing to do" in on(MANAGER, printed("docker service logs"))
    assert account_ids() == IDS


def test_scaling_down_fails_no_request_and_scaling_up_uses_the_free_node(stack: None, report: Report) -> None:
    with load(report, "scale from 3 to 2"):
        on(MANAGER, printed("docker service scale cct_app=2"))
        until(lambda: settled(2), "scaled down")
    on(MANAGER, printed("docker service scale cct_app=3"))
    until(lambda: {task.node for task in settled()} == set(NODES), "scaled up")


def test_killed_database_comes_back_with_its_accounts(stack: None, report: Report) -> None:
    killed = settled(1, "db")
    with load(report, "database killed, until there are pages again", "503") as results:
        on(DATA, "docker kill $(docker ps --quiet --filter name=cct_db)")
        until(lambda: settled(1, "db") - killed, "replaced")
        until(account_ids, "answering")
    assert results[1]
    assert account_ids() == IDS


def test_tasks_of_a_killed_node_run_elsewhere(stack: None, report: Report) -> None:
    with load(report, "node killed, until its tasks run elsewhere", ""):
        docker("kill", f"{NAME}-{SPARE}")
        until(lambda: {task.node for task in settled()} == {MANAGER, DATA}, "elsewhere", 120)
    assert len(containers()) == 3
    assert account_ids() == IDS


def test_every_replica_takes_its_part_of_the_load(stack: None, report: Report) -> None:
    for replicas in (1, 2, 3):
        on(MANAGER, f"docker service scale --detach cct_app={replicas}")
        until(partial(settled, replicas), f"{replicas} replicas")
        for node in {task.node for task in settled(replicas)}:  # slowed down, lest the client be the limit
            on(node, "docker ps --quiet --filter name=cct_app | xargs docker update --cpus 0.05")
        with load(report, f"{replicas} replicas, a twentieth of a core each", "", "32", "0") as results:
            time.sleep(4)
        assert len(results[0]) == replicas


def test_nothing_but_the_accounts_is_left_after_the_removal(stack: None) -> None:
    on(MANAGER, "docker service rm client")
    on(MANAGER, printed("docker stack rm"))
    left = "docker service ls -q; docker secret ls -q; docker config ls -q; docker network ls | grep cct_ || true"
    until(lambda: on(MANAGER, left) == "", "removed")
    volume = printed("docker volume rm")
    until(lambda: on(DATA, f"{volume} || true") == "cct_data", "free")


def test_database_elsewhere(stack: None, tmp_path: Path) -> None:
    start_mysql(MYSQL, tmp_path, f"--network=name={NAME},alias=mysql.example.com", "--port=3307")
    on(MANAGER, printed("printf"))
    start_client()
    assert on(MANAGER, "docker service ps --quiet cct_db") == ""
    assert until(account_ids, "seeded") == IDS


def test_every_printed_command_was_run(stack: None, report: Report) -> None:
    report(f"docs/swarm.md: {len(PRINTED)} commands were run, {DOC.count('```sh example')} need what only a user has")
    assert used == set(PRINTED)
