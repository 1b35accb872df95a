"""What the running stack is. These tests only look."""

import json
from pathlib import Path

import pytest

from tests.stack import Stack, docker

DB_POWER = 0xCB  # CHOWN, DAC_OVERRIDE, FOWNER, SETGID and SETUID
CONNECT = (
    "import socket; print(socket.create_connection(('{}', 3306), 3).recv(9) or exit('silent'))"
)


def run(stack: Stack, service: str, command: str) -> str:
    """Run a shell command in a new container of a service, instead of its program."""
    new = ("run", "--rm", "--no-deps", "--entrypoint=sh")
    return stack.compose(*new, service, "-c", command)


def test_watch_sees_exactly_what_is_in_the_image(stack: Stack) -> None:
    """Otherwise, `docker compose watch` would miss the edit of a file."""
    config = json.loads(stack.compose("config", "--format", "json"))
    watched = {Path(rule["path"]).name for rule in config["services"]["app"]["develop"]["watch"]}
    copied = set(stack.exec("app", "ls").split()) - {"__pycache__"}
    assert watched == copied | {"requirements.txt"}  # the list of the packages


@pytest.mark.parametrize("network", ["web", "host"])
def test_database_is_out_of_reach(stack: Stack, network: str) -> None:
    """The network `web` and the host cannot connect. The server can."""
    [only_network] = stack.inspect("db")["NetworkSettings"]["Networks"].values()
    attempt = ("python", "-c", CONNECT.format(only_network["IPAddress"]))
    source = network if network == "host" else f"{stack.name}_{network}"

    with pytest.raises(AssertionError, match=r"timed out|unreachable|refused|silent"):
        docker("run", "--rm", f"--network={source}", "python:3.14-slim", *attempt)
    stack.exec("app", *attempt)


@pytest.mark.parametrize("service", ["seeder", "app"])
def test_service_reads_only_its_own_password(stack: Stack, service: str) -> None:
    files = run(stack, service, "find /run/secrets -type f")
    assert files == f"/run/secrets/{service}/password\n"


@pytest.mark.parametrize("service", ["db", "seeder", "app", "autoheal"])
def test_service_has_no_more_power_than_it_needs(stack: Stack, service: str) -> None:
    shown = run(stack, service, "cat /proc/self/status; touch /x 2>&1 || true")
    power = DB_POWER if service == "db" else 0
    assert f"CapBnd:\t{power:016x}\n" in shown
    assert "NoNewPrivs:\t1\n" in shown
    assert "Read-only file system" in shown
    is_user_10001 = "Uid:\t10001\t10001\t10001\t10001\n" in shown
    assert is_user_10001 == (service in ("seeder", "app"))
