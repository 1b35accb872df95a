"""A machine for tests: a container whose engine can be restarted."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.stack import Stack, docker
from tools.waiting import free_port, until


class Machine(Stack):
    """A stack in a container with its own engine. Images are built outside, and loaded there."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        api = free_port()
        self.here = self.env
        self.env = self.here | {
            "DOCKER_HOST": f"tcp://127.0.0.1:{api}",
            "APP_ADDRESS": "0.0.0.0",
        }
        self.ports = (
            f"--publish=127.0.0.1:{api}:2375",
            f"--publish=127.0.0.1:{self.port}:{self.port}",
        )

    def create(self) -> None:
        """Make the images, and start the machine. Its engine is not started yet."""
        docker("compose", "build", cwd=self.folder, env=self.here)
        docker("compose", "pull", "--policy", "missing", "autoheal", cwd=self.folder, env=self.here)
        images = docker("compose", "config", "--images", cwd=self.folder, env=self.here).split()
        docker("save", "--output", f"{self.folder}/images.tar", *images)
        run = ("run", "--detach", "--init", "--privileged", "--env=DOCKER_TLS_CERTDIR=")
        sleep = ("--entrypoint=sleep", "docker:28-dind", "infinity")
        docker(*run, f"--name={self.name}", f"--hostname={self.name}", *self.ports, *sleep)

    def remove(self) -> None:
        """Remove the machine and the images."""
        docker("rm", "-f", "-v", self.name)
        docker("compose", "down", "--rmi", "local", cwd=self.folder, env=self.here)

    def on_machine(self, command: str) -> str:
        """Run a shell command on the machine."""
        return docker("exec", self.name, "sh", "-c", command)

    def start_engine(self, *options: str) -> None:
        """Start the engine, wait until it answers, and load the images if it has none."""
        docker("exec", "--detach", self.name, "dockerd-entrypoint.sh", *options)
        until(self.has_engine, "an engine")
        if not self.docker("images", "--quiet"):
            self.docker("load", "--input", f"{self.folder}/images.tar")

    def has_engine(self) -> bool:
        """Return whether the engine answers."""
        try:
            self.docker("info")
        except AssertionError:
            return False
        return True

    def stop_engine(self) -> None:
        """Stop the engine cleanly."""
        wait = "while kill -0 $pid 2>/dev/null; do sleep 0.1; done"
        self.on_machine(f"pid=$(cat /var/run/docker.pid) && kill $pid && {wait}")

    def kill_engine(self) -> None:
        """Kill the engine alone. The containers go on."""
        self.on_machine("kill -KILL $(cat /var/run/docker.pid)")

    def lose_power(self) -> None:
        """Kill everything on the machine at once. Then start the machine, but not its engine."""
        docker("kill", self.name)
        docker("start", self.name)


@contextmanager
def running_machine(folder: Path) -> Iterator[Machine]:
    """Yield a machine whose engine is not started yet; remove the machine at the end."""
    machine = Machine(folder)
    try:
        machine.create()
        yield machine
    finally:
        machine.remove()
