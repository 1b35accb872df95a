"""The stack of docker-compose.yml in a real engine, as a user meets it."""

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attacks import attacked, pipeline
from tests.conftest import Report
from tests.docker import Stack, docker, running_stack, start_mysql
from tests.helpers import ROOT, free_port, get, until

POWER = {
    "db": 0xCB,
    "seeder": 0,
    "app": 0,
    "autoheal": 0,
}  # CHOWN, DAC_OVERRIDE, FOWNER, SETGID, SETUID for db


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory.mktemp("stack") / "cct") as stack:
        yield stack


def test_page_answers_as_soon_as_up_returns_and_logs_tell_no_successful_probes(
    stack: Stack,
) -> None:
    page = stack.page()
    assert len(page["accounts"]) == 50
    assert page["container"] == stack.inspect("app")["Id"][:12]
    until(lambda: "'/' 200" in stack.compose("logs", "app"), "logged")
    assert "'/health' 200" not in stack.compose("logs", "app")
    assert "inserted 100 accounts" in stack.compose("logs", "seeder")


def test_only_the_page_is_published_and_the_database_is_out_of_reach_from_elsewhere(
    stack: Stack,
) -> None:
    published = [stack.inspect(service)["HostConfig"]["PortBindings"] for service in POWER]
    assert published == [
        {},
        {},
        {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(stack.port)}]},
        {},
    ]
    members = [set(stack.inspect(service)["NetworkSettings"]["Networks"]) for service in POWER]
    database, web = f"{stack.name}_database", f"{stack.name}_web"
    assert members == [{database}, {database}, {database, web}, {"none"}]
    assert json.loads(docker("network", "inspect", database))[0]["Internal"] is True
    address = stack.inspect("db")["NetworkSettings"]["Networks"][database]["IPAddress"]
    attempt = f"import socket; assert socket.create_connection(('{address}', 3306), 3).recv(9), 'no greeting'"
    for network in (web, "host"):
        with pytest.raises(AssertionError, match=r"timed out|unreachable|refused|no greeting"):
            docker("run", "--rm", "--network", network, "python:3.14-slim", "python", "-c", attempt)
    stack.exec("app", "python", "-c", attempt)  # the same attempt from where it is allowed


def test_pipelining_does_not_make_the_engine_call_it_unhealthy(stack: Stack) -> None:
    """Python 3.12 and newer, as in the image, begin the next request of a connection without a turn of the loop."""
    with attacked(stack.port, pipeline, 20):
        until(
            lambda: "'/nothing' 404" in stack.compose("logs", "--tail", "9", "app"), "under attack"
        )
        end = time.monotonic() + 12  # two probes
        while time.monotonic() < end:
            assert get(stack.port, "/health", 0.5) == (200, "healthy\n")
            assert stack.inspect("app")["State"]["Health"]["FailingStreak"] == 0


def test_heal(stack: Stack, report: Report) -> None:
    before, began = stack.page(), time.monotonic()
    _, told = stack.get("/make-unhealthy")
    until(lambda: stack.health() == "unhealthy", "unhealthy")
    unhealthy, log = time.monotonic(), stack.inspect("app")["State"]["Health"]["Log"]
    assert [probe["Output"] for probe in log if probe["ExitCode"]][-3:] == [told] * 3
    until(lambda: stack.health() == "healthy", "healed")
    report(
        f"unhealthy after {unhealthy - began:.1f} s, healthy after {time.monotonic() - began:.1f} s"
    )
    after = stack.page()
    assert after.pop("started") != before.pop("started")
    assert after == before
    assert f"/{stack.container('app')} (" in stack.compose("logs", "autoheal")


def test_broken_right_after_its_start_it_is_healed(stack: Stack) -> None:
    stack.compose("up", "-d", "--force-recreate", "--no-deps", "app")
    until(lambda: stack.get("/make-unhealthy")[0] == 200, "broken")
    started, limit = (
        stack.started(),
        5 + 15 + 3,
    )  # seconds: the start period, three probes, the restart
    until(lambda: stack.started() != started and stack.health() == "healthy", "healed", limit)


def test_restart_and_down_keep_the_accounts_and_the_passwords(stack: Stack) -> None:
    stack.sql("UPDATE accounts SET name = 'edited' WHERE id = 1; DELETE FROM accounts WHERE id = 2")
    accounts, passwords = (
        stack.page()["accounts"],
        stack.exec("db", "sh", "-c", "cat /run/secrets/*/password"),
    )
    stack.compose("restart")
    until(lambda: stack.get()[0] == 200, "answering")
    assert stack.page()["accounts"] == accounts
    stack.compose("down")
    stack.up()
    assert stack.page()["accounts"] == accounts
    assert stack.exec("db", "sh", "-c", "cat /run/secrets/*/password") == passwords
    assert stack.compose("logs", "--no-log-prefix", "seeder").endswith(
        "accounts has rows already: nothing to do\n"
    )


def test_each_password_is_read_by_its_service_alone_and_stands_nowhere_else(stack: Stack) -> None:
    for service in ("seeder", "app"):
        find = (service, "find", "/run/secrets", "-type", "f")
        assert (
            stack.compose("run", "--rm", "--no-deps", *find) == f"/run/secrets/{service}/password\n"
        )
    passwords = stack.exec("db", "sh", "-c", "cat /run/secrets/*/password").split()
    assert len({password for password in passwords if len(password) >= 40}) == 3
    containers, images = (
        stack.compose("ps", "-aq").split(),
        stack.compose("config", "--images").split(),
    )
    places = (
        stack.compose("logs") + stack.compose("config") + docker("inspect", *containers, *images)
    )
    places += "".join(docker("history", "--no-trunc", image) for image in images)
    assert not [password for password in passwords if password in places]
    assert not re.search(r'"\w*PASSWORD=', places)


@pytest.mark.parametrize("service", POWER)
def test_service_has_no_more_power_than_it_needs(stack: Stack, service: str) -> None:
    look = ("--entrypoint", "sh", service, "-c", "cat /proc/1/status; touch /x 2>&1 || true")
    told = stack.compose("run", "--rm", "--no-deps", *look)
    assert re.search(rf"^CapBnd:\t{POWER[service]:016x}$", told, re.MULTILINE)
    assert re.search(r"^NoNewPrivs:\t1$", told, re.MULTILINE)
    assert "Read-only file system" in told
    assert ("Uid:\t10001\t10001\t10001\t10001" in told) == (service in ("seeder", "app"))
    host = stack.inspect(service)["HostConfig"]
    assert 0 not in (host["Memory"], host["PidsLimit"])
    assert host["LogConfig"]["Type"] == "local"


def test_nobody_is_root_over_the_network_and_the_app_can_only_read(stack: Stack) -> None:
    assert stack.sql("SELECT host FROM mysql.user WHERE user = 'root'") == "localhost\n"
    with pytest.raises(AssertionError, match="denied"):
        stack.sql("DELETE FROM accounts", "app")


def test_rotated_passwords_are_used_without_a_restart(stack: Stack) -> None:
    old, started = stack.exec("app", "cat", "/run/secrets/app/password"), stack.page()["started"]
    login = "MYSQL_PWD=$(cat /run/secrets/$user/password) command mysql -h 127.0.0.1 -u $user -e 'SELECT 1' cct"
    each_step = f'mysql() {{ command mysql "$@" && {login}; }}; export -f mysql'  # the file's password is good after it
    stack.exec("db", "bash", "-c", f"{each_step}; bash /docker-entrypoint-initdb.d/users.sh rotate")
    with pytest.raises(AssertionError, match="Access denied"):
        stack.exec("db", "mysql", "-h127.0.0.1", "-uapp", f"-p{old.strip()}", "cct")
    stack.end_app_connections()
    assert stack.get("/ready") == (200, "ready\n")
    stack.up()  # the seeder logs in with its new one
    assert stack.page()["started"] == started


def test_proxy_takes_the_socket_from_the_healer(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(stack.env, "DOCKER_SOCKET", "/run/my.sock")
    alone = json.loads(stack.compose("config", "--format", "json"))["services"]["autoheal"]
    monkeypatch.setitem(
        stack.env, "COMPOSE_FILE", "docker-compose.yml:deploy/docker-compose.proxy.yml"
    )
    both = json.loads(stack.compose("config", "--format", "json"))["services"]
    healer, proxy = both["autoheal"], both["docker-proxy"]
    sources = [
        [volume["source"] for volume in service["volumes"]] for service in (alone, healer, proxy)
    ]
    assert sources == [["/run/my.sock"], ["filtered"], ["/run/my.sock", "filtered"]]
    assert f"-proxysocketendpoint={healer['environment']['DOCKER_SOCK']}" in proxy["command"]
    assert {healer["network_mode"], proxy["network_mode"]} == {"none"}


def test_volume_of_an_older_schema_is_named_and_repaired(stack: Stack) -> None:
    stack.sql("ALTER TABLE accounts DROP COLUMN email")  # as if schema.sql had gained it since
    stack.up()
    told = "missing column: Unknown column 'email' in 'field list'\n"
    assert stack.get("/ready") == (503, f"not ready: {told}")
    assert f"accounts cannot be read: {told}" in stack.compose("logs", "app")
    stack.sql("ALTER TABLE accounts ADD COLUMN email VARCHAR(254) NOT NULL DEFAULT ''")
    assert len(stack.page()["accounts"]) == 50


def test_watch_shows_an_edited_page(stack: Stack) -> None:
    page, watch = stack.folder / "page/page.html", ["docker", "compose", "watch", "--no-up"]
    with subprocess.Popen(
        watch, cwd=stack.folder, env=stack.env, stdout=subprocess.PIPE, text=True
    ) as watching:
        try:
            assert "Watch enabled" in next(iter(watching.stdout or ()))
            page.write_text(page.read_text().replace("<h1>", "<h1>Edited "))
            until(lambda: "<h1>Edited " in stack.get()[1], "shown")
        finally:
            watching.terminate()


def test_second_copy_lives_beside_the_first(stack: Stack, tmp_path: Path) -> None:
    git = ("git", "-c", "user.name=x", "-c", "user.email=x")
    for command in (
        "init -q .",
        "add .",
        "commit -qm x",
        f"clone -q -c core.autocrlf=true . {tmp_path}/clone",
    ):
        subprocess.run(
            [*git, *command.split()], cwd=stack.folder, check=True
        )  # the clone is made as on Windows
    with running_stack(tmp_path / "cct", tmp_path / "clone") as second:
        second.sql("UPDATE accounts SET name = 'second' WHERE id = 1")
        assert [copy.page()["accounts"][0]["name"] == "second" for copy in (stack, second)] == [
            False,
            True,
        ]
        assert stack.inspect("app")["Config"]["Image"] != second.inspect("app")["Config"]["Image"]
        stack.compose("stop", "autoheal")
        stack.get("/make-unhealthy")
        until(lambda: stack.health() == "unhealthy", "unhealthy")
        started = second.started()
        second.get("/make-unhealthy")
        until(lambda: second.started() != started, "healed by its own healer")
        assert stack.health() == "unhealthy"  # which the other's healer leaves alone
        stack.compose("start", "autoheal")
        until(lambda: stack.health() == "healthy", "healed")
    assert len(stack.page()["accounts"]) == 50


def test_database_elsewhere(stack: Stack, tmp_path: Path) -> None:
    host = docker(
        "network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Gateway}}"
    ).strip()
    port, name = str(free_port()), f"{stack.name}-elsewhere"
    settings = {
        "COMPOSE_FILE": "docker-compose.yml:deploy/docker-compose.external.yml",
        "PASSWORDS": str(tmp_path),
    }
    with pytest.raises(
        AssertionError, match="DB_HOST is missing a value: must name the host of the database"
    ):
        docker("compose", "config", env=stack.env | settings)
    try:
        start_mysql(
            name,
            tmp_path,
            "--network=host",
            f"--bind-address={host}",
            f"--port={port}",
            "--mysqlx=0",
        )
        with running_stack(
            tmp_path / "cct", ROOT, DB_HOST=host, DB_PORT=port, **settings
        ) as second:
            assert len(second.page()["accounts"]) == 50
            assert second.compose("ps", "-a", "--services").split() == ["app", "autoheal", "seeder"]
    finally:
        docker("rm", "-f", "-v", name)


def test_backup_is_restored(stack: Stack) -> None:
    backup, restore = re.findall(
        r"(?m)^docker compose exec .*backup\.sql$", (ROOT / "README.md").read_text()
    )
    rows = stack.sql("CHECKSUM TABLE accounts")
    subprocess.run(["sh", "-c", backup], cwd=stack.folder, env=stack.env, check=True)
    stack.compose("down", "-v")
    stack.env["SEED_ACCOUNTS"] = "0"
    stack.up()
    for lost in (
        "SELECT COUNT(*) FROM accounts",
        "DELETE FROM accounts WHERE id > 50",
        "DROP TABLE accounts",
    ):
        stack.sql(lost)
        assert stack.sql("CHECKSUM TABLE accounts") != rows
        subprocess.run(["sh", "-c", restore], cwd=stack.folder, env=stack.env, check=True)
        assert stack.sql("CHECKSUM TABLE accounts") == rows


def test_emptied_password_volume_is_named(stack: Stack) -> None:
    stack.compose("down")
    docker("volume", "rm", f"{stack.name}_app-password")
    stack.compose("up", "-d", "db")
    sentence = "The volume app-password is empty, but the data has that user's old password: bring the volume back"
    until(lambda: sentence in stack.compose("logs", "db"), "told")
    until(lambda: stack.inspect("db")["RestartCount"] > 0, "refused")


def test_down_with_v_deletes_everything(stack: Stack) -> None:
    stack.down()
    for kind in ("container ls -a", "volume ls", "network ls"):
        assert (
            docker(
                *kind.split(), "-q", "--filter", f"label=com.docker.compose.project={stack.name}"
            )
            == ""
        )
