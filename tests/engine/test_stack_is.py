"""What the running stack is. These tests only look."""

import json
import re

import pytest

from tests.stack import Stack, docker
from tools import ROOT
from tools.waiting import until

SERVICES = ("db", "seeder", "app", "autoheal")
DB_POWER = 0xCB  # CHOWN, DAC_OVERRIDE, FOWNER, SETGID and SETUID
CONNECT = (
    "import socket; print(socket.create_connection(('{}', 3306), 3).recv(9) or exit('silent'))"
)


def run(stack: Stack, service: str, *command: str) -> str:
    """Run a command in a new container of a service, instead of its program."""
    return stack.compose(
        "run", "--rm", "--no-deps", "--entrypoint", command[0], service, *command[1:]
    )


def test_page_shows_the_accounts_and_its_container(stack: Stack) -> None:
    page = stack.page()
    assert len(page["accounts"]) == 50
    assert page["container"] == stack.inspect("app")["Id"][:12]


def test_log_of_app_has_pages_but_no_successful_probe(stack: Stack) -> None:
    stack.page()
    until(lambda: "'/' 200" in stack.logs("app"), "logged")
    assert "'/health' 200" not in stack.logs("app")


def test_only_the_page_is_published_to_this_machine(stack: Stack) -> None:
    ports = {service: stack.inspect(service)["HostConfig"]["PortBindings"] for service in SERVICES}
    page = {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(stack.port)}]}
    assert ports == {"db": {}, "seeder": {}, "app": page, "autoheal": {}}


def test_each_service_is_only_on_its_networks(stack: Stack) -> None:
    networks = {
        service: set(stack.inspect(service)["NetworkSettings"]["Networks"]) for service in SERVICES
    }
    database = f"{stack.name}_database"
    web = f"{stack.name}_web"
    assert networks == {
        "db": {database},
        "seeder": {database},
        "app": {database, web},
        "autoheal": {"none"},
    }
    assert json.loads(docker("network", "inspect", database))[0]["Internal"] is True


@pytest.mark.parametrize("network", ["web", "host"])
def test_database_is_out_of_reach(stack: Stack, network: str) -> None:
    """The network `web` and the host cannot connect. The server can."""
    networks = stack.inspect("db")["NetworkSettings"]["Networks"]
    address = networks[f"{stack.name}_database"]["IPAddress"]
    attempt = ("python", "-c", CONNECT.format(address))
    source = network if network == "host" else f"{stack.name}_{network}"

    with pytest.raises(AssertionError, match=r"timed out|unreachable|refused|silent"):
        docker("run", "--rm", f"--network={source}", "python:3.14-slim", *attempt)
    stack.exec("app", *attempt)


@pytest.mark.parametrize("service", ["seeder", "app"])
def test_service_reads_only_its_own_password(stack: Stack, service: str) -> None:
    files = run(stack, service, "find", "/run/secrets", "-type", "f")
    assert files == f"/run/secrets/{service}/password\n"


def test_passwords_are_long_and_different(stack: Stack) -> None:
    passwords = stack.passwords()
    assert len(set(passwords)) == 3
    for password in passwords:
        assert len(password) >= 40


@pytest.mark.parametrize("service", SERVICES)
def test_service_has_no_more_power_than_it_needs(stack: Stack, service: str) -> None:
    status = run(stack, service, "cat", "/proc/1/status")
    power = DB_POWER if service == "db" else 0
    assert re.search(rf"^CapBnd:\t{power:016x}$", status, re.MULTILINE)
    assert re.search(r"^NoNewPrivs:\t1$", status, re.MULTILINE)
    is_user_10001 = "Uid:\t10001\t10001\t10001\t10001" in status
    assert is_user_10001 == (service in ("seeder", "app"))


@pytest.mark.parametrize("service", SERVICES)
def test_service_cannot_write_into_its_own_files(stack: Stack, service: str) -> None:
    with pytest.raises(AssertionError, match="Read-only file system"):
        run(stack, service, "touch", "/x")


@pytest.mark.parametrize("service", SERVICES)
def test_service_has_limits_and_a_log_that_rotates(stack: Stack, service: str) -> None:
    host = stack.inspect(service)["HostConfig"]
    assert host["Memory"] > 0
    assert host["PidsLimit"] > 0
    assert host["LogConfig"] == {"Type": "local", "Config": {"mode": "non-blocking"}}


def test_database_has_a_minute_to_stop(stack: Stack) -> None:
    """After it, the engine kills. In the default 10 s, a busy MySQL may not end."""
    assert stack.inspect("db")["Config"]["StopTimeout"] >= 60


def test_images_tell_the_version_of_the_changelog(stack: Stack) -> None:
    newest = re.search(r"(?m)^## (.+)$", (ROOT / "CHANGELOG.md").read_text())
    assert newest
    for image in stack.images():
        labels = json.loads(docker("inspect", image))[0]["Config"]["Labels"]
        assert labels["org.opencontainers.image.version"] == newest[1]


@pytest.mark.parametrize("service", SERVICES)
def test_no_file_of_the_clone_is_mounted(stack: Stack, service: str) -> None:
    mounts = stack.inspect(service)["Mounts"]
    files = [mount["Source"] for mount in mounts if mount["Type"] == "bind"]
    socket = stack.env.get("DOCKER_SOCKET", "/var/run/docker.sock")
    assert files == ([socket] if service == "autoheal" else [])


def test_root_can_log_in_only_inside_db(stack: Stack) -> None:
    assert stack.sql("SELECT host FROM mysql.user WHERE user = 'root'") == "localhost\n"


@pytest.mark.parametrize("statement", ["DELETE FROM accounts", "CREATE TABLE more (id INT)"])
def test_server_can_only_read(stack: Stack, statement: str) -> None:
    with pytest.raises(AssertionError, match="denied"):
        stack.sql_as_app(statement)
