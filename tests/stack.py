"""A Compose stack for tests, in a real engine."""

import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from docker import DockerClient

from tests.shell import run_command
from tools import ROOT
from tools.waiting import free_port, get, until

IGNORED_BY_GIT = (ROOT / ".gitignore").read_text().replace("/\n", "\n").split()


def copy_project(folder: Path, source: Path = ROOT) -> None:
    """Copy the project, as Git knows it, into a folder."""
    ignored = shutil.ignore_patterns(".git", *IGNORED_BY_GIT)
    shutil.copytree(source, folder, ignore=ignored, dirs_exist_ok=True)


def docker(*arguments: str, cwd: Path = ROOT, env: Mapping[str, str] = os.environ) -> str:
    """Run a docker command, and return its output; raise AssertionError if it fails."""
    return run_command("docker", *arguments, cwd=cwd, env=env)


def require_engine() -> None:
    """Skip the test if there is no engine with Compose."""
    try:
        docker("compose", "version")
        docker("info")
    except (AssertionError, OSError):
        pytest.skip("needs Docker Engine 25 or newer with Compose, and a user who may use it")


def start_mysql(container: str, image: str, passwords: Path, network: str, *options: str) -> None:
    """Start a MySQL outside of a stack, from the image of db. Write its passwords into a folder.

    `network` is an option of docker run.
    """
    files = []
    for user in ("root", "seeder", "app"):
        (passwords / user).write_text(f"the password of {user}")
        files.append(f"--volume={passwords / user}:/run/secrets/{user}/password:ro")
    root = "--env=MYSQL_ROOT_PASSWORD_FILE=/run/secrets/root/password"
    variables = ("--env=MYSQL_DATABASE=cct", root)
    place = (f"--name={container}", network)
    docker("run", "--detach", *place, *files, *variables, image, "mysqld", *options)


def gateway() -> str:
    """Return the address of this machine in the engine's default network."""
    form = "--format={{(index .IPAM.Config 0).Gateway}}"
    return docker("network", "inspect", form, "bridge").strip()


class Stack:
    """A copy of the project in its own folder, with its own project name and port."""

    def __init__(self, folder: Path, source: Path = ROOT, **settings: str) -> None:
        require_engine()
        copy_project(folder, source)
        self.folder = folder
        self.port = free_port()
        self.name = f"cct-test-{self.port}"
        own = {
            "COMPOSE_PROJECT_NAME": self.name,
            "APP_PORT": str(self.port),
            "AUTOHEAL_LABEL": self.name,  # else the healers of other stacks restart app, too
        }
        self.env = os.environ | own | settings

    def docker(self, *arguments: str) -> str:
        """Run a docker command in the folder, with the settings."""
        return docker(*arguments, cwd=self.folder, env=self.env)

    def compose(self, *arguments: str) -> str:
        """Run a command of Compose."""
        return self.docker("compose", *arguments)

    def shell(self, command: str) -> str:
        """Run a command in bash, as a user does; raise AssertionError if it fails."""
        return run_command("bash", "-c", command, cwd=self.folder, env=self.env)

    def up(self) -> None:
        """Start everything, and wait until it is healthy. Compose builds missing images."""
        self.compose("up", "-d", "--wait")

    def renew(self) -> None:
        """Start everything again from nothing: files, images, volumes and containers."""
        self.compose("down", "-v", "-t", "2", "--remove-orphans")
        copy_project(self.folder)
        self.compose("up", "-d", "--build", "--wait")

    def down(self) -> None:
        """Remove the containers, volumes, networks and images of the stack."""
        self.compose("down", "-v", "-t", "2", "--rmi", "local", "--remove-orphans")

    def container(self, service: str) -> str:
        """Return the name of a service's container."""
        return f"{self.name}-{service}-1"

    def images(self) -> list[str]:
        """Return the names of the stack's images."""
        return [f"{self.name}-{image}" for image in ("db", "seeder", "app")]

    def engine(self) -> closing[DockerClient]:
        """Connect to the engine. Polling in this way needs less CPU time than `docker` commands."""
        return closing(DockerClient.from_env(environment=self.env))

    def inspect(self, service: str) -> Any:
        """Return the engine's description of a service's container."""
        with self.engine() as engine:
            return engine.api.inspect_container(self.container(service))

    def health(self, service: str = "app") -> str:
        """Return the health of a service, in the engine's word."""
        return str(self.inspect(service)["State"]["Health"]["Status"])

    def wait_until_healthy(self, service: str = "app") -> None:
        """Wait until a service is healthy."""
        until(lambda: self.health(service) == "healthy", f"{service} healthy")

    def started(self, service: str = "app") -> str:
        """Return the start time of a service's container."""
        return str(self.inspect(service)["State"]["StartedAt"])

    def heal(self) -> float:
        """Set the flag and wait for the heal; return the seconds that it took."""
        started = self.started()
        began = time.monotonic()
        assert self.get("/make-unhealthy")[0] == 200
        self.wait_for_heal(started)
        return time.monotonic() - began

    def wait_for_heal(self, started: str) -> None:
        """Wait until app has another start time, and is healthy."""
        until(lambda: self.started() != started, "restarted")
        self.wait_until_healthy()

    def count_heals(self) -> int:
        """Return how often the healer has found app unhealthy, by its log."""
        found = rf"/{self.container('app')} \(\w+\) found to be unhealthy"
        return len(re.findall(found, self.logs("autoheal")))

    def logs(self, service: str) -> str:
        """Return the log of a service."""
        with self.engine() as engine:
            return engine.api.logs(self.container(service)).decode()

    def exec(self, service: str, *command: str) -> str:
        """Run a command in a service's container."""
        return self.docker("exec", self.container(service), *command)

    def on_host(self, service: str, command: str) -> None:
        """Run a shell command on the host. `$pid` is the first process of a service.

        The engine treats a kill from the host as a crash, and restarts the container.
        """
        pid = self.inspect(service)["State"]["Pid"]
        on_host = ("--rm", "--privileged", "--pid=host", "python:3.14-slim")
        docker("run", *on_host, "sh", "-c", f"pid={pid}; {command}")

    def in_server(self, command: str) -> None:
        """Run a shell command in the container of app. `$pid` is the server's process.

        Return before the command has ended, because it may end the container.
        """
        child_of_init = "read pid </proc/1/task/1/children"
        shell = ("sh", "-c", f"{child_of_init}; {command}")
        self.docker("exec", "--detach", self.container("app"), *shell)

    def sql(self, statement: str, *options: str) -> str:
        """Execute a statement as root."""
        return self.exec("db", "as-root.sh", "mysql", "-Ne", statement, *options, "cct")

    def sql_as_app(self, statement: str) -> str:
        """Execute a statement as the user app, over TCP."""
        login = "MYSQL_PWD=$(cat /run/secrets/app/password) mysql -h 127.0.0.1 -u app"
        return self.exec("db", "sh", "-c", f'{login} -Ne "$1" cct', "sh", statement)

    @contextmanager
    def locked_table(self) -> Iterator[None]:
        """Lock the table until the end of the context."""
        lock = "LOCK TABLES accounts WRITE; DO SLEEP(600)"
        mysql = ("as-root.sh", "mysql", "-e", lock, "cct")
        self.docker("exec", "--detach", self.container("db"), *mysql)
        select = "SELECT id FROM information_schema.processlist WHERE info = 'DO SLEEP(600)'"
        connection = until(lambda: self.sql(select), "locked")
        try:
            yield
        finally:
            self.sql(f"KILL {connection}")

    def end_app_connections(self) -> None:
        """End the connections of the server to the database."""
        select = "SELECT id FROM information_schema.processlist WHERE user = 'app'"
        kills = [f"KILL {id};" for id in self.sql(select).split()]
        self.sql("".join(kills), "--force")  # a connection may end by itself first

    def passwords(self) -> list[str]:
        """Return the passwords of app, root and seeder."""
        return self.exec("db", "sh", "-c", "cat /run/secrets/*/password").split()

    def get(self, path: str = "/", **headers: str) -> tuple[int, str]:
        """Return the status and text of an answer; status 0 if there is no answer."""
        return get(self.port, path, 10, **headers)

    def page(self) -> Any:
        """Return the page of accounts as JSON."""
        status, text = self.get(accept="application/json")
        assert status == 200, text
        return json.loads(text)


@contextmanager
def running_stack(folder: Path, **settings: str) -> Iterator[Stack]:
    """Start a stack; remove it at the end."""
    stack = Stack(folder, ROOT, **settings)
    try:
        stack.up()
        yield stack
    finally:
        stack.down()
