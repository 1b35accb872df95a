"""deploy/kubernetes without a cluster: containers with the rights of its pods.

test_cluster.py tests the rest on a cluster.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.manifest import container, environment, pod
from tests.stack import docker, require_engine
from tools.waiting import free_port, get, until


class Containers:
    """Containers of db and app, with the rights of their pods, in one network."""

    def __init__(self, passwords: Path) -> None:
        self.name = f"cct-kubernetes-{os.getpid()}"
        self.passwords = passwords
        self.port = free_port()  # of the server, on this machine

    def build(self, name: str) -> str:
        """Return the image of a pod."""
        image = f"{self.name}-{name}"
        docker("build", "--quiet", f"--target={name}", f"--tag={image}", ".")
        return image

    def run(self, name: str, user: str, *options: str) -> None:
        """Start the container of a pod. Kubernetes does not use the health check of an image."""
        identity = (f"--name={self.name}-{name}", f"--user={user}", "--no-healthcheck")
        rights = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges:true")
        variables = [f"--env={key}={value}" for key, value in environment(name).items()]
        image = self.build(name)
        docker("run", "--detach", *identity, *rights, *variables, *options, image)

    def start_db(self) -> None:
        """Start db on a new disk. Mount each password as a file, as the Secret does."""
        context = pod("db")["securityContext"]
        group = context["fsGroup"]
        disk = f"--volume={self.name}:/var/lib/mysql:nocopy"
        new_disk = f"cd /var/lib/mysql; mkdir lost+found; chgrp -R {group} .; chmod -R 2770 ."
        as_root = ("--rm", "--user=0", "--entrypoint=sh", disk, self.build("db"))
        docker("run", *as_root, "-ec", new_disk)
        self.write_passwords()
        secret = f"--volume={self.passwords}:/run/secrets:ro"
        empty = ("--tmpfs=/tmp", "--tmpfs=/var/run/mysqld:mode=777")
        port = f"--publish=127.0.0.1:{self.port}:8080"
        user = f"{context['runAsUser']}:{context['runAsGroup']}"
        self.run("db", user, f"--group-add={group}", disk, secret, *empty, port)

    def write_passwords(self) -> None:
        """Write the files that the Secret gives to db."""
        for volume in pod("db")["volumes"]:
            if volume["name"] == "passwords":
                for item in volume["secret"]["items"]:
                    file = self.passwords / item["path"]
                    file.parent.mkdir()
                    file.write_text(f"the password of {item['key']}")

    def start_app(self) -> None:
        """Start app beside db."""
        secret = f"--volume={self.passwords}/app:/run/secrets/app:ro"
        beside = f"--network=container:{self.name}-db"
        self.run("app", "10001:10001", secret, beside, "--env=DB_HOST=127.0.0.1")

    def exec(self, name: str, *command: str, user: str = "") -> str:
        """Run a command in the container of a pod; raise AssertionError if it fails."""
        return docker("exec", f"--user={user}", f"{self.name}-{name}", *command)

    def sql(self, statement: str) -> str:
        """Execute a statement as root."""
        return self.exec("db", "as-root.sh", "mysql", "-Ne", statement)

    def users(self) -> list[str]:
        """Return the names of the users seeder and app, if they exist."""
        select = "SELECT user FROM mysql.user WHERE user IN ('seeder', 'app') ORDER BY user"
        return self.sql(select).split()

    def passes(self, kind: str) -> bool:
        """Return whether a probe of db passes."""
        probe = container("db")[kind]
        try:
            self.exec("db", "timeout", str(probe["timeoutSeconds"]), *probe["exec"]["command"])
        except AssertionError:
            return False
        return True

    def wait_for(self, kind: str, seconds: float = 60) -> None:
        """Wait until a probe of db passes."""
        until(lambda: self.passes(kind), f"passing {kind}", seconds)

    def remove(self) -> None:
        """Remove the containers, images and the volume."""
        for name in ("app", "db"):
            docker("rm", "--force", "--volumes", f"{self.name}-{name}")
            docker("image", "rm", "--force", f"{self.name}-{name}")
        docker("volume", "rm", "--force", self.name)


@pytest.fixture(scope="module")
def containers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    """Start db and app; yield them after the first start."""
    require_engine()
    folder = tmp_path_factory.mktemp("secret")
    folder.chmod(0o755)
    started = Containers(folder)
    try:
        started.start_db()
        started.wait_for("startupProbe", 240)
        assert started.users() == ["app", "seeder"]  # a first start counts only then
        started.start_app()
        yield started
    finally:
        started.remove()


def test_database_is_ready_with_the_rights_of_its_pod(containers: Containers) -> None:
    assert containers.exec("db", "id", "--user") == "999\n"
    containers.wait_for("readinessProbe")
    containers.wait_for("livenessProbe")


@pytest.mark.parametrize("user", ["999", "0"])
def test_users_sh_refuses_to_rotate(containers: Containers, user: str) -> None:
    """users.sh cannot replace the files of the Secret, so it changes nothing."""
    before = containers.sql("SELECT user, authentication_string, user_attributes FROM mysql.user")
    with pytest.raises(AssertionError, match="password cannot be replaced here"):
        containers.exec("db", "users.sh", "rotate", user=user)
    after = containers.sql("SELECT user, authentication_string, user_attributes FROM mysql.user")
    assert after == before


def test_wrong_password_of_app_leaves_the_database_in_its_service(containers: Containers) -> None:
    """So the server gets the true answer "Access denied", not "Connection refused"."""
    password = containers.passwords / "app" / "password"
    right = password.read_text()
    password.write_text("wrong")
    docker("restart", f"{containers.name}-app")
    until(lambda: get(containers.port, "/ready")[0] == 503, "refused")
    log = f"{containers.name}-app"
    until(lambda: "Access denied for user 'app'" in docker("logs", log), "explained")
    assert containers.passes("readinessProbe")
    password.write_text(right)


def test_database_that_hangs_is_not_alive(containers: Containers) -> None:
    docker("kill", "--signal=STOP", f"{containers.name}-db")
    assert not containers.passes("livenessProbe")
    docker("kill", "--signal=CONT", f"{containers.name}-db")
    containers.wait_for("livenessProbe")


def test_killed_database_starts_again(containers: Containers) -> None:
    containers.sql("CREATE TABLE cct.marks (id INT)")
    docker("kill", f"{containers.name}-db")
    docker("start", f"{containers.name}-db")
    containers.wait_for("startupProbe", 240)
    assert containers.sql("SHOW TABLES FROM cct") == "marks\n"
