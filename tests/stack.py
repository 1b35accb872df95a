"""A Compose stack of the tests' own, in a real engine."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import ROOT, free_port, get


def docker(*arguments: str, cwd: Path = ROOT, env: Mapping[str, str] = os.environ) -> str:
    """Run a docker command and return its output; AssertionError with its errors where it fails."""
    done = subprocess.run(
        ["docker", *arguments],
        cwd=cwd,
        env=env,
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stdout}{done.stderr}"
    return done.stdout


def require_engine() -> None:
    """Skip the test where there is no engine with Compose; fail it where REQUIRE_DOCKER=1 says that there is one."""
    try:
        docker("compose", "version")
        docker("info")
    except (AssertionError, OSError) as error:
        if os.environ.get("REQUIRE_DOCKER") == "1":
            pytest.fail(f"REQUIRE_DOCKER=1, but there is no Docker engine: {error}")
        pytest.skip(
            "needs Docker Engine 25 or newer with Compose, and a user who may use it, as in the group docker"
        )


def start_engine(container: str, *options: str) -> None:
    """Start an engine in a container, and wait until it answers."""
    docker(
        "run",
        "--detach",
        "--privileged",
        "--name",
        container,
        "--env",
        "DOCKER_TLS_CERTDIR=",
        *options,
    )
    docker("exec", container, "sh", "-c", "until docker info; do sleep 0.2; done")


def start_mysql(container: str, passwords: Path, network: str, *options: str) -> None:
    """Start a MySQL of no stack, with the users of users.sh, whose passwords are files in a folder."""
    mounts = [f"--volume={ROOT}/users.sh:/docker-entrypoint-initdb.d/users.sh:ro"]
    for user in ("root", "seeder", "app"):
        (passwords / user).write_text(f"the password of {user}")
        mounts.append(f"--volume={passwords / user}:/run/secrets/{user}/password:ro")
    environment = (
        "-e",
        "MYSQL_DATABASE=cct",
        "-e",
        "MYSQL_ROOT_PASSWORD_FILE=/run/secrets/root/password",
    )
    docker(
        "run",
        "--detach",
        "--name",
        container,
        network,
        *mounts,
        *environment,
        "mysql:9.7",
        *options,
    )


class Stack:
    """A copy of the project in a folder of its own, with a project name and a port of its own."""

    def __init__(self, folder: Path, source: Path = ROOT, **settings: str) -> None:
        require_engine()
        ignored = shutil.ignore_patterns(".git", ".venv", ".*_cache", "__pycache__", "node_modules")
        shutil.copytree(source, folder, ignore=ignored)
        self.folder = folder
        self.name = f"cct-test-{free_port()}"
        self.port = free_port()
        self.env = (
            os.environ | {"COMPOSE_PROJECT_NAME": self.name, "APP_PORT": str(self.port)} | settings
        )

    def compose(self, *arguments: str) -> str:
        return docker("compose", *arguments, cwd=self.folder, env=self.env)

    def up(self) -> None:
        self.compose("up", "-d", "--build", "--wait")

    def down(self) -> None:
        """Remove what it made, but for the images of others."""
        self.compose("down", "-v", "-t", "2")
        docker("image", "rm", "--force", f"{self.name}-app", f"{self.name}-seeder")

    def container(self, service: str) -> str:
        return f"{self.name}-{service}-1"

    def inspect(self, service: str) -> Any:
        return json.loads(docker("inspect", self.container(service), env=self.env))[0]

    def health(self, service: str = "app") -> str:
        return str(self.inspect(service)["State"]["Health"]["Status"])

    def started(self, service: str = "app") -> str:
        return str(self.inspect(service)["State"]["StartedAt"])

    def exec(self, service: str, *command: str) -> str:
        return docker("exec", self.container(service), *command, env=self.env)

    def sql(self, statement: str, user: str = "root", *options: str) -> str:
        """Execute a statement as a user: root over the socket, others over TCP."""
        host = "" if user == "root" else "--host=127.0.0.1"
        command = f'MYSQL_PWD=$(cat /run/secrets/{user}/password) mysql -u {user} {host} -Ne "{statement}" cct'
        return self.exec("db", "sh", "-c", " ".join([command, *options]))

    def end_app_connections(self) -> None:
        ids = self.sql("SELECT id FROM information_schema.processlist WHERE user = 'app'").split()
        self.sql(
            "".join(f"KILL {id};" for id in ids), "root", "--force"
        )  # one may end by itself first

    def get(self, path: str = "/", **headers: str) -> tuple[int, str]:
        return get(self.port, path, 10, **headers)

    def page(self) -> Any:
        """Return the account page for programs."""
        status, text = self.get(accept="application/json")
        assert status == 200, text
        return json.loads(text)


@contextmanager
def running_stack(folder: Path, source: Path = ROOT, **settings: str) -> Iterator[Stack]:
    """Give a stack that is up, and leave nothing of it behind."""
    stack = Stack(folder, source, **settings)
    try:
        stack.up()
        yield stack
    finally:
        stack.down()
