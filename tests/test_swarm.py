"""The stack of docs/swarm.md on a real Swarm of three nodes.

The tests tell one story, in their order, with the commands that docs/swarm.md prints. The load comes from clients that
never try again: each answer but a page counts.
"""

import functools
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Report
from tests.docker import docker, require_engine
from tests.helpers import ROOT, until
from tests.swarm import (
    DATA,
    DOC,
    MANAGER,
    MYSQL,
    NAME,
    NODES,
    PRINTED,
    SPARE,
    account_ids,
    balancer,
    containers,
    get,
    load,
    on,
    printed,
    running_swarm,
    settled,
    start_client,
    used,
)

IDS = list(range(1, 101))


@pytest.fixture(scope="module")
def stack() -> Iterator[None]:
    require_engine()
    with running_swarm():
        yield


@pytest.mark.parametrize(
    ("settings", "image"),
    [({}, "cct-app:latest"), ({"REGISTRY": "registry.example.com/", "TAG": "1"}, "registry.example.com/cct-app:1")],
)
def test_stack_file_is_valid(settings: dict[str, str], image: str) -> None:
    if shutil.which("docker") is None and os.environ.get("REQUIRE_DOCKER") != "1":
        pytest.skip("needs the docker command")
    config = docker("stack", "config", "--compose-file", "deploy/docker-stack.yml", env=os.environ | settings)
    assert f"image: {image}\n" in config


def test_seeder_seeds(stack: None) -> None:
    assert account_ids() == IDS


def test_replicas_answer_on_every_node(stack: None, report: Report) -> None:
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


@pytest.mark.parametrize(
    ("service", "user", "passwords"), [("app", "10001", ["app"]), ("db", "999", ["app", "root", "seeder"])]
)
def test_nobody_else_reads_the_passwords(stack: None, service: str, user: str, passwords: list[str]) -> None:
    files = "sh -c 'stat -c \"%u %a %n\" /run/secrets/*/password'"
    assert on(DATA, f"docker exec $(docker ps --quiet --filter name=cct_{service}) {files}").splitlines() == [
        f"{user} 400 /run/secrets/{name}/password" for name in passwords
    ]


def test_unhealthy_replica_is_replaced_without_a_failed_request(stack: None, report: Report) -> None:
    before, answered = settled(), containers()
    with load(report, "unhealthy replica replaced"):
        get(balancer(), "/make-unhealthy")
        until(lambda: settled() - before, "replaced", 120)
    assert len(settled() & before) == 2
    assert len(containers() & answered) == 2


def test_rolling_update_fails_no_request(stack: None, report: Report) -> None:
    before = settled()
    with load(report, "update of 3 replicas"):
        on(MANAGER, "export TAG=2; " + printed("docker stack deploy"))
        until(settled, "settled")
    assert not settled() & before
    assert {task.image for task in settled()} == {"registry:5000/cct-app:2"}


def test_seeder_of_the_update_left_the_accounts_alone(stack: None) -> None:
    assert "nothing to do" in on(MANAGER, printed("docker service logs"))
    assert account_ids() == IDS


def test_going_back_fails_no_request(stack: None, report: Report) -> None:
    with load(report, "going back"):
        on(MANAGER, printed("docker service rollback"))
        until(settled, "settled")
    assert {task.image for task in settled()} == {"registry:5000/cct-app:1"}


def test_update_that_never_gets_healthy_is_rolled_back_without_a_failed_request(stack: None, report: Report) -> None:
    with load(report, "update that never gets healthy, and is rolled back"):
        sick = "--image registry:5000/cct-app:2 --health-cmd false --health-interval 1s --health-retries 1"
        on(MANAGER, f"docker service update --quiet {sick} cct_app")
        until(settled, "settled")
    assert on(MANAGER, printed("docker service inspect")) == "rollback_completed"
    assert {task.image for task in settled()} == {"registry:5000/cct-app:1"}


def test_scale_down_fails_no_request(stack: None, report: Report) -> None:
    with load(report, "scale from 3 to 2"):
        on(MANAGER, printed("docker service scale cct_app=2"))
        until(lambda: settled(2), "scaled down")


def test_scale_up_uses_the_free_node(stack: None) -> None:
    on(MANAGER, printed("docker service scale cct_app=3"))
    until(settled, "scaled up")
    assert {task.node for task in settled()} == set(NODES)


def test_killed_database_comes_back_with_its_accounts(stack: None, report: Report) -> None:
    killed = settled(1, "db")
    with load(report, "database killed, until there are pages again", may_fail="503") as requests:
        on(DATA, "docker kill $(docker ps --quiet --filter name=cct_db)")
        until(lambda: settled(1, "db") - killed, "replaced")
        until(account_ids, "answering")
    assert requests.failures
    assert account_ids() == IDS


def test_tasks_of_a_killed_node_run_elsewhere(stack: None, report: Report) -> None:
    with load(report, "node killed, until its tasks run elsewhere", may_fail=""):
        docker("kill", f"{NAME}-{SPARE}")
        until(lambda: {task.node for task in settled()} == {MANAGER, DATA}, "elsewhere", 120)
    assert len(containers()) == 3
    assert account_ids() == IDS


def test_every_replica_takes_its_part_of_the_load(stack: None, report: Report) -> None:
    for replicas in (1, 2, 3):
        on(MANAGER, f"docker service scale --detach cct_app={replicas}")
        until(functools.partial(settled, replicas), f"{replicas} replicas")
        for node in {task.node for task in settled(replicas)}:  # slowed down, lest the client be the limit
            on(node, "docker ps --quiet --filter name=cct_app | xargs docker update --cpus 0.05")
        with load(report, f"{replicas} replicas, a twentieth of a core each", "", "32 0") as requests:
            time.sleep(4)
        assert len(requests.answers) == replicas


def test_nothing_but_the_accounts_is_left_after_the_removal(stack: None) -> None:
    on(MANAGER, "docker service rm client")
    on(MANAGER, printed("docker stack rm"))
    left = "docker service ls -q; docker secret ls -q; docker config ls -q; docker network ls | grep cct_ || true"
    until(lambda: on(MANAGER, left) == "", "removed")
    volume = printed("docker volume rm")
    until(lambda: on(DATA, f"{volume} || true") == "cct_data", "free")


def test_database_elsewhere(stack: None, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)  # for the user mysql
    for user in ("root", "seeder", "app"):
        (tmp_path / user).mkdir()
        (tmp_path / user / "password").write_text(f"the password of {user}")
    docker(
        *("run", "--detach", "--name", MYSQL, "--network", NAME, "--network-alias", "mysql.example.com"),
        *("--env", "MYSQL_DATABASE=cct", "--env", "MYSQL_ROOT_PASSWORD_FILE=/run/secrets/root/password"),
        *("--volume", f"{ROOT}/users.sh:/docker-entrypoint-initdb.d/users.sh", "--volume", f"{tmp_path}:/run/secrets"),
        *("mysql:9.7", "--port=3307"),
    )
    on(MANAGER, printed("printf"))
    start_client()
    assert on(MANAGER, "docker service ps --quiet cct_db") == ""
    assert until(account_ids, "seeded") == IDS


def test_every_printed_command_was_run(stack: None, report: Report) -> None:
    report(f"docs/swarm.md: {len(PRINTED)} commands were run, {DOC.count('```sh example')} need what only a user has")
    assert used == set(PRINTED)
