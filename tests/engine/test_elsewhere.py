"""A database elsewhere: commands of docs/tasks.md, and mistakes."""

import socket
from contextlib import suppress
from pathlib import Path

import pytest

from tests.documents import TASKS
from tests.stack import Stack, docker, gateway, start_mysql
from tools.waiting import free_port, until

EXTERNAL = "docker-compose.yml:deploy/docker-compose.external.yml"


def listens(host: str, port: int) -> bool:
    """Return whether a server accepts connections."""
    with suppress(OSError), socket.create_connection((host, port)):
        return True
    return False


def test_database_elsewhere_is_used_and_left_again(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands of docs/tasks.md move a running stack there. `down` and `up` move it back."""
    accounts = stack.page()["accounts"]
    host = gateway()
    port = free_port()
    name = f"{stack.name}-elsewhere"
    options = (f"--bind-address={host}", f"--port={port}", "--mysqlx=0")
    passwords = stack.folder / "passwords"
    passwords.mkdir(exist_ok=True)
    go = TASKS.commands("Use a database elsewhere").replace("mysql.example.com", host)
    go = go.replace("3307", str(port)).replace("verify-identity", "required")
    monkeypatch.setitem(stack.env, "SEED_ACCOUNTS", "7")
    try:
        start_mysql(name, f"{stack.name}-db", passwords, "--network=host", *options)
        until(lambda: listens(host, port), "started", 240)
        stack.shell(go)
        assert len(stack.page()["accounts"]) == 7
        monkeypatch.setitem(stack.env, "COMPOSE_FILE", EXTERNAL)
        monkeypatch.setitem(stack.env, "DB_HOST", host)
        services = stack.compose("ps", "--all", "--services").split()
        assert services == ["app", "autoheal", "seeder"]
        stack.compose("down")
    finally:
        docker("rm", "-f", "-v", name)
    monkeypatch.undo()
    stack.up()
    assert stack.page()["accounts"] == accounts


def test_unreachable_database_elsewhere_fails_once(tmp_path: Path) -> None:
    """The seeder tries for SEED_WAIT seconds, and is not restarted."""
    (tmp_path / "wait.yml").write_text('services: {seeder: {environment: {SEED_WAIT: "1"}}}\n')
    files = f"{EXTERNAL}:{tmp_path}/wait.yml"
    stack = Stack(tmp_path / "cct", COMPOSE_FILE=files, DB_HOST="localhost")
    (stack.folder / "passwords").mkdir()
    for user in ("seeder", "app"):
        (stack.folder / "passwords" / user).write_text("secret")
    try:
        with pytest.raises(AssertionError, match=r"seeder.* didn.t complete successfully"):
            stack.up()
        assert stack.logs("seeder").count("could not be seeded") == 1
        assert "In a container, localhost is the container" in stack.logs("seeder")
    finally:
        stack.down()
