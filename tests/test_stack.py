"""The stack of docker-compose.yml in a real engine, as a user meets it."""

import json
import re
import socket
from collections.abc import Iterator

import pytest

from tests.docker import Stack, docker, require_engine, running_stack, until

SERVICES = ("db", "seeder", "app", "autoheal")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    require_engine()
    with running_stack(tmp_path_factory.mktemp("stack") / "cct") as stack:
        yield stack


def test_page_answers_as_soon_as_up_returns(stack: Stack) -> None:
    status, page = stack.get()
    assert status == 200
    assert page.count("<tr><td>") == 50
    assert stack.inspect("app")["Id"][:12] in page


def test_only_the_page_is_published(stack: Stack) -> None:
    published = {service: stack.inspect(service)["HostConfig"]["PortBindings"] for service in SERVICES}
    assert {service for service, ports in published.items() if ports} == {"app"}
    assert list(published["app"]) == ["80/tcp"]


def test_database_is_on_no_network_but_its_own(stack: Stack) -> None:
    members = {service: set(stack.inspect(service)["NetworkSettings"]["Networks"]) for service in SERVICES}
    database, web = f"{stack.name}_database", f"{stack.name}_web"
    assert members == {"db": {database}, "seeder": {database}, "app": {database, web}, "autoheal": {"none"}}
    assert json.loads(docker("network", "inspect", database))[0]["Internal"] is True


def test_database_is_out_of_reach_from_elsewhere(stack: Stack) -> None:
    address = stack.inspect("db")["NetworkSettings"]["Networks"][f"{stack.name}_database"]["IPAddress"]
    attempt = f"import socket; socket.create_connection(('{address}', 3306), 3)"
    with pytest.raises(AssertionError, match=r"timed out|unreachable|refused"):
        docker("run", "--rm", "--network", f"{stack.name}_web", "python:3.14-slim", "python", "-c", attempt)
    stack.exec("app", "python", "-c", attempt)  # the same attempt from where it is allowed


def test_heal(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    before, identity = stack.page(), stack.inspect("app")
    status, told = stack.get("/make-unhealthy")
    assert status == 200
    unhealthy = until(lambda: stack.health() == "unhealthy", "unhealthy")
    log = stack.inspect("app")["State"]["Health"]["Log"]
    assert [probe["Output"] for probe in log if probe["ExitCode"]][-3:] == [told] * 3
    restarted = unhealthy + until(
        lambda: stack.inspect("app")["State"]["StartedAt"] != identity["State"]["StartedAt"], "restarted"
    )
    healthy = restarted + until(lambda: stack.health() == "healthy", "healthy")
    after = stack.page()
    assert after["started"] != before["started"]
    assert after["container"] == before["container"]
    assert after["accounts"] == before["accounts"]
    assert f"/{stack.container('app')} (" in stack.compose("logs", "autoheal")
    assert stack.inspect("app")["State"]["ExitCode"] == 0
    with capsys.disabled():
        print(f"\nunhealthy after {unhealthy:.1f} s, restarted after {restarted:.1f} s, healthy after {healthy:.1f} s")


def test_probe_says_why_nothing_answers(stack: Stack) -> None:
    probe = stack.inspect("app")["Config"]["Healthcheck"]["Test"][1:]
    with pytest.raises(AssertionError, match=r"no answer: \[Errno 111\] Connection refused"):
        docker("run", "--rm", stack.inspect("app")["Image"], *probe)


def test_logs_tell_the_story_without_the_successful_probes(stack: Stack) -> None:
    stack.get("/?after=1")
    until(lambda: "'/?after=1' 200" in stack.compose("logs", "app"), "logged")
    log = stack.compose("logs", "app")
    assert "listening on 0.0.0.0:80" in log
    assert "'/health' 200" not in log
    assert "inserted 100 accounts" in stack.compose("logs", "seeder")


def test_restart_and_down_keep_the_accounts_and_the_passwords(stack: Stack) -> None:
    stack.sql("UPDATE accounts SET name = 'edited' WHERE id = 1; DELETE FROM accounts WHERE id = 2")
    accounts, passwords = stack.page()["accounts"], stack.exec("db", "sh", "-c", "cat /run/secrets/*/password")
    assert accounts[0]["name"] == "edited"
    stack.compose("restart")
    until(lambda: stack.get()[0] == 200, "answering")
    assert stack.page()["accounts"] == accounts
    stack.compose("down")
    stack.up()
    assert stack.page()["accounts"] == accounts
    assert stack.exec("db", "sh", "-c", "cat /run/secrets/*/password") == passwords
    assert stack.compose("logs", "--no-log-prefix", "seeder").endswith("accounts has rows already: nothing to do\n")


def test_no_password_stands_where_others_read(stack: Stack) -> None:
    passwords = stack.exec("db", "sh", "-c", "cat /run/secrets/*/password").split()
    assert len(set(passwords)) == 3
    assert all(len(password) >= 40 for password in passwords)
    places = [stack.compose("logs"), stack.compose("config")]
    for service in SERVICES:
        image = stack.inspect(service)["Image"]
        places += [docker("inspect", stack.container(service)), docker("image", "inspect", image)]
        places += [docker("history", "--no-trunc", image)]
    assert not [place for place in places for password in passwords if password in place]
    environment = [entry for service in SERVICES for entry in stack.inspect(service)["Config"]["Env"]]
    assert not [entry for entry in environment if re.match(r"\w*PASSWORD=", entry)]


def test_each_service_reads_its_own_password_alone(stack: Stack) -> None:
    mounts = {
        service: {mount["Destination"] for mount in stack.inspect(service)["Mounts"]} for service in ("seeder", "app")
    }
    assert mounts == {"seeder": {"/run/secrets/seeder"}, "app": {"/run/secrets/app"}}
    assert stack.exec("app", "find", "/run/secrets", "-type", "f").split() == ["/run/secrets/app/password"]


def test_app_runs_without_privileges(stack: Stack) -> None:
    status = stack.exec("app", "cat", "/proc/1/status")
    assert re.search(r"^Uid:\t10001\t10001\t10001\t10001$", status, re.MULTILINE)
    assert re.search(r"^CapBnd:\t0+$", status, re.MULTILINE)
    assert re.search(r"^NoNewPrivs:\t1$", status, re.MULTILINE)
    with pytest.raises(AssertionError, match="Read-only file system"):
        stack.exec("app", "touch", "/tmp/x")
    for service in ("app", "seeder"):
        host = stack.inspect(service)["HostConfig"]
        assert host["ReadonlyRootfs"]
        assert host["CapDrop"] == ["ALL"]
        assert host["Memory"] > 0
        assert host["PidsLimit"] > 0


def test_rows_travel_encrypted(stack: Stack) -> None:
    stack.get()
    threads = "SELECT DISTINCT connection_type FROM performance_schema.threads WHERE processlist_user = 'app'"
    assert stack.sql(threads) == "SSL/TLS\n"


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO accounts (name, email) VALUES ('x', 'x')",
        "DELETE FROM accounts",
        "DROP TABLE accounts",
        "SELECT * FROM mysql.user",
        "SELECT 1 INTO OUTFILE '/tmp/x'",
    ],
)
def test_user_of_the_app_can_only_select(stack: Stack, statement: str) -> None:
    assert stack.sql("SELECT COUNT(*) FROM accounts", "app")
    with pytest.raises(AssertionError, match="denied"):
        stack.sql(statement, "app")


def test_root_of_the_database_has_no_login_over_the_network(stack: Stack) -> None:
    assert stack.sql("SELECT host FROM mysql.user WHERE user = 'root'") == "localhost\n"


def test_rotated_passwords_are_used_without_a_restart(stack: Stack) -> None:
    old, started = stack.exec("app", "cat", "/run/secrets/app/password"), stack.page()["started"]
    login = "MYSQL_PWD=$(cat /run/secrets/$user/password) command mysql -h 127.0.0.1 -u $user -e 'SELECT 1' cct"
    each_step = f'mysql() {{ command mysql "$@" && {login}; }}; export -f mysql'  # the file's password is good after it
    stack.exec("db", "bash", "-c", f"{each_step}; bash /docker-entrypoint-initdb.d/users.sh rotate")
    assert stack.exec("app", "cat", "/run/secrets/app/password") != old
    with pytest.raises(AssertionError, match="Access denied"):
        stack.exec("db", "mysql", "-h127.0.0.1", "-uapp", f"-p{old.strip()}", "cct")
    for connection in stack.sql("SELECT id FROM information_schema.processlist WHERE user = 'app'").split():
        stack.sql(f"KILL {connection}")
    assert stack.get("/ready") == (200, "ready\n")
    assert stack.page()["started"] == started
    stack.up()  # the seeder logs in with its new one
    assert stack.page()["started"] == started


def test_proxy_takes_the_socket_from_the_healer(stack: Stack) -> None:
    files = ("-f", "docker-compose.yml", "-f", "docker-compose.proxy.yml")
    services = json.loads(stack.compose(*files, "config", "--format", "json"))["services"]
    healer, proxy = services["autoheal"], services["docker-proxy"]
    sockets = {
        name: [volume["source"] for volume in services[name]["volumes"]] for name in ("autoheal", "docker-proxy")
    }
    assert sockets == {"autoheal": ["filtered"], "docker-proxy": ["/var/run/docker.sock", "filtered"]}
    assert f"-proxysocketendpoint={healer['environment']['DOCKER_SOCK']}" in proxy["command"]
    assert {healer["network_mode"], proxy["network_mode"]} == {"none"}


def test_down_with_v_deletes_everything(stack: Stack) -> None:
    stack.down()
    for kind in ("container", "volume", "network"):
        arguments = ["-a"] if kind == "container" else []
        assert docker(kind, "ls", *arguments, "-q", "--filter", f"label=com.docker.compose.project={stack.name}") == ""
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", stack.port), 1)
