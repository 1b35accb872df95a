"""The stack of docs/swarm.md on a real Swarm: three engines in containers, with a registry of their own.

The tests tell one story, in their order, with the commands that docs/swarm.md prints. Where the kernel has no IPVS,
neither the published port nor virtual IPs work: there the client picks one of the tasks that DNS names.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from subprocess import run

import pytest

from tests import client
from tests.conftest import Report
from tests.docker import docker, require_engine, start_engine, start_mysql
from tests.helpers import ROOT, free_port, until

NAME = f"cct-swarm-{os.getpid()}"  # begins the name of all that is started
NODES = MANAGER, DATA, SPARE = "node-1", "node-2", "node-3"
IDS = list(range(1, 101))  # of the accounts
PUSH = f"127.0.0.1:{free_port()}"  # the registry, as this machine calls it
NAMES = ("cct-app:1", "cct-app:2", "cct-seeder:1", "cct-seeder:2", "library/mysql:9.7")
IMAGES = [f"{PUSH}/{name}" for name in NAMES]

CODE = r"(?ms)^```sh\n(.+?)\n```$|^\| [^|\n]+ \| `([^`\n]+)` \|"  # a block, or the second cell of a table's row
PRINTED = [
    block or cell for block, cell in re.findall(CODE, (ROOT / "docs" / "swarm.md").read_text())
]
used: set[str] = set()

EXEC = 'docker exec --interactive $(docker ps --quiet --filter name=^client) "$@"'
CLIENT = ["exec", "--interactive", f"{NAME}-{MANAGER}", "sh", "-c", EXEC, "sh"]
load = partial(client.load, ["docker", *CLIENT])


def printed(start: str) -> str:
    """Return the command that docs/swarm.md prints and that starts like this."""
    command: str = next(command for command in PRINTED if command.startswith(start))
    used.add(command)
    return command


def on(node: str, command: str) -> str:
    """Run shell commands on a node and return their output; AssertionError if one fails."""
    return docker("exec", f"{NAME}-{node}", "sh", "-ec", command).strip()


def settled(replicas: int = 3, service: str = "app") -> dict[str, dict[str, str]]:
    """Return the tasks that run on the nodes that are left, once they are so many and none of them is stopping."""
    told = on(
        MANAGER, f"{printed('docker service ps').replace('app', service)} --format json"
    ).splitlines()
    left = on(MANAGER, "docker node ls --format '{{.Hostname}} {{.Status}}'").splitlines()
    running = [task for task in map(json.loads, told) if task["CurrentState"].startswith("Running")]
    tasks = {task["ID"]: task for task in running if f"{task['Node']} Ready" in left}
    return (
        tasks if [task["DesiredState"] for task in tasks.values()] == ["Running"] * replicas else {}
    )


def start_client() -> None:
    """Start a container on the stack's network that makes the requests."""
    options = "--name client --no-healthcheck --network cct_web --constraint node.role==manager"
    on(MANAGER, f"docker service create --quiet {options} registry:5000/cct-app:1 sleep infinity")


def get(host: str, path: str) -> str:
    """Return what the client gets; AssertionError if nothing answers."""
    return docker(*CLIENT, "python", "-c", client.GET, host, path)


def account_ids(app: str) -> list[int]:
    """Return the ids of all accounts; none if the database does not answer."""
    with suppress(AssertionError, KeyError):
        pages = [json.loads(get(app, f"/?after={after}")) for after in (0, 50)]
        return [account["id"] for page in pages for account in page["accounts"]]
    return []


@pytest.fixture(scope="module")
def app() -> Iterator[str]:
    """Start the stack of docs/swarm.md on three nodes, which pull from a registry, and a client on its network.

    Give the name at which Swarm balances, as far as the kernel lets it.
    """
    require_engine()
    try:
        docker("network", "create", "--internal", NAME)
        docker(
            "run",
            "--detach",
            "--name",
            f"{NAME}-registry",
            "--publish",
            f"{PUSH}:5000",
            "registry:2",
        )
        docker("network", "connect", "--alias", "registry", NAME, f"{NAME}-registry")
        for node in NODES:
            place = (
                f"--hostname={node}",
                f"--network={NAME}",
                f"--volume={ROOT}:/cct:ro",
                "--workdir=/cct",
            )
            engine = (
                "docker:28-dind",
                "--insecure-registry=registry:5000",
                "--registry-mirror=http://registry:5000",
            )
            start_engine(
                f"{NAME}-{node}", *place, "--env=REGISTRY=registry:5000/", "--env=TAG=1", *engine
            )
        for tag in ("1", "2"):
            env = os.environ | {"COMPOSE_PROJECT_NAME": "cct", "REGISTRY": f"{PUSH}/", "TAG": tag}
            run(
                ["sh", "-ec", printed("docker compose build")],
                cwd=ROOT,
                env=env,
                check=True,
                timeout=300,
            )
        docker("compose", "pull", "--policy", "missing", "db")
        docker("tag", "mysql:9.7", IMAGES[-1])
        docker("push", IMAGES[-1])
        on(MANAGER, printed("docker swarm init"))
        for node in (DATA, SPARE):
            on(node, on(MANAGER, "docker swarm join-token worker | grep join"))
        on(MANAGER, printed("docker node update"))
        on(MANAGER, printed("docker stack deploy"))
        start_client()
        yield on(MANAGER, "test -e /proc/net/ip_vs && echo app || echo tasks.app")
    finally:
        containers = docker("ps", "--all", "--quiet", "--filter", f"name=^{NAME}-").split()
        for removal in (
            ["rm", "-f", "-v", *containers],
            ["network", "rm", NAME],
            ["image", "rm", *IMAGES],
        ):
            run(["docker", *removal], check=False, capture_output=True)


def test_seeder_seeds_and_each_node_has_a_replica(app: str) -> None:
    assert account_ids(app) == IDS
    assert {task["Node"] for task in settled().values()} == set(NODES)


def test_published_port_answers_on_every_node(app: str) -> None:
    if app == "tasks.app":
        pytest.skip(
            "needs IPVS in the kernel; without it the other tests find the tasks by DNS round robin"
        )
    for node in NODES:
        assert get(f"{on(node, 'hostname -i')}:5000", "/health") == "healthy\n\n"


def test_services_have_the_least_power_and_nobody_else_reads_their_passwords(app: str) -> None:
    form = '{{index .Config.Labels "com.docker.swarm.service.name"}}{{with .HostConfig}} {{.ReadonlyRootfs}}'
    form += " {{.CapDrop}} {{.CapAdd}} {{.Memory}} {{.PidsLimit}}{{end}}"
    form += "{{range $name, $_ := .NetworkSettings.Networks}} {{$name}}{{end}}"
    command = f"docker inspect --format '{form}' $(docker ps --all --quiet --filter name=cct_)"
    assert {line for node in NODES for line in on(node, command).splitlines()} == {
        "cct_app true [ALL] [] 268435456 64 cct_database cct_web ingress",
        "cct_seeder true [ALL] [] 268435456 64 cct_database cct_web",
        "cct_db true [ALL] [CAP_CHOWN CAP_DAC_OVERRIDE CAP_FOWNER CAP_SETGID CAP_SETUID] 1073741824 512 cct_database",
    }
    look = "docker exec $(docker ps --quiet --filter name=cct_{}) sh -c 'stat -c \"%u %a %n\" /run/secrets/*/password'"
    file = "{} 400 /run/secrets/{}/password".format
    assert on(DATA, look.format("app")) == file(10001, "app")
    assert on(DATA, look.format("db")).splitlines() == [
        file(999, user) for user in ("app", "root", "seeder")
    ]


def test_unhealthy_replica_is_replaced_without_a_failed_request(app: str, report: Report) -> None:
    before = settled()
    with load(app, report, "unhealthy replica replaced") as results:
        get(app, "/make-unhealthy")
        until(lambda: settled().keys() - before, "replaced", 120)
    assert len(settled().keys() & before) == 2
    assert len(results[0]) >= 3  # each replica takes its part


def test_updates_fail_no_request_and_leave_the_accounts_alone(app: str, report: Report) -> None:
    sick = (
        "--image registry:5000/cct-app:2 --health-cmd false --health-interval 1s --health-retries 1"
    )
    for event, command, tag in (
        ("update of 3 replicas", f"export TAG=2; {printed('docker stack deploy')}", 2),
        ("going back", printed("docker service rollback"), 1),
        (
            "update that never gets healthy, and is rolled back",
            f"docker service update --quiet {sick} cct_app",
            1,
        ),
    ):
        with load(app, report, event):
            on(MANAGER, command)
            until(settled, "settled")
        assert {task["Image"] for task in settled().values()} == {f"registry:5000/cct-app:{tag}"}
    assert on(MANAGER, printed("docker service inspect")) == "rollback_completed"
    assert "nothing to do" in on(MANAGER, printed("docker service logs"))
    assert account_ids(app) == IDS


def test_scaling_down_fails_no_request_and_scaling_up_uses_the_free_node(
    app: str, report: Report
) -> None:
    with load(app, report, "scale from 3 to 2"):
        on(MANAGER, printed("docker service scale cct_app=2"))
        until(lambda: settled(2), "scaled down")
    on(MANAGER, printed("docker service scale cct_app=3"))
    until(lambda: {task["Node"] for task in settled().values()} == set(NODES), "scaled up")


def test_killed_database_comes_back_with_its_accounts(app: str, report: Report) -> None:
    killed = settled(1, "db")
    with load(app, report, "database killed, until there are pages again", "503") as results:
        on(DATA, "docker kill $(docker ps --quiet --filter name=cct_db)")
        until(lambda: settled(1, "db").keys() - killed, "replaced")
        until(lambda: account_ids(app), "answering")
    assert results[1]
    assert account_ids(app) == IDS


def test_tasks_of_a_killed_node_run_elsewhere(app: str, report: Report) -> None:
    with load(app, report, "node killed, until its tasks run elsewhere", ""):
        docker("kill", f"{NAME}-{SPARE}")
        until(
            lambda: {task["Node"] for task in settled().values()} == {MANAGER, DATA},
            "elsewhere",
            120,
        )
    assert account_ids(app) == IDS


def test_nothing_but_the_accounts_is_left_after_the_removal(app: str) -> None:
    on(MANAGER, "docker service rm client")
    on(MANAGER, printed("docker stack rm"))
    left = "docker service ls -q; docker secret ls -q; docker config ls -q; docker network ls | grep cct_ || true"
    until(lambda: on(MANAGER, left) == "", "removed")
    until(lambda: on(DATA, f"{printed('docker volume rm')} || true") == "cct_data", "free")


def test_database_elsewhere(app: str, tmp_path: Path) -> None:
    start_mysql(
        f"{NAME}-mysql", tmp_path, f"--network=name={NAME},alias=mysql.example.com", "--port=3307"
    )
    on(MANAGER, printed("printf"))
    start_client()
    assert on(MANAGER, "docker service ps --quiet cct_db") == ""
    assert until(lambda: account_ids(app), "seeded") == IDS


def test_every_printed_command_was_run_and_the_file_needs_no_settings(app: str) -> None:
    assert used == set(PRINTED)
    config = "unset REGISTRY TAG; docker stack config --compose-file deploy/docker-stack.yml"
    assert "image: cct-app:latest\n" in on(MANAGER, config)
