"""What people do: move the clone, run two, stop early, keep files beside it, remove everything."""

import shutil
import time
from pathlib import Path

from tests.documents import TASKS
from tests.shell import run_command
from tests.stack import Stack, docker
from tools.waiting import until


def test_database_comes_back_without_its_clone(stack: Stack, tmp_path: Path) -> None:
    """The folder of the project is moved while everything runs. Then db is killed."""
    started = stack.started("db")
    moved = shutil.move(stack.folder, tmp_path / "moved")
    original = stack.folder
    stack.folder = Path(moved)
    try:
        stack.on_host("db", "kill -KILL $pid")
        until(lambda: stack.started("db") != started, "restarted")
        stack.wait_until_healthy("db")
        until(lambda: stack.get("/ready")[0] == 200, "ready")
        stack.compose("restart")  # from its new place
        until(lambda: stack.get("/ready")[0] == 200, "ready")
        stack.wait_until_healthy()
    finally:
        stack.folder = original
        shutil.move(moved, original)


def make_odd_clone(source: Path, folder: Path) -> None:
    """Make a repository of a copy. Clone it with umask 077 and the line ends of Windows."""
    git = ("git", "-c", "user.name=x", "-c", "user.email=x")
    for command in ("init -q .", "add .", "commit -qm x"):
        run_command(*git, *command.split(), cwd=source)
    run_command(*git, "clone", "-q", "-c", "core.autocrlf=true", ".", str(folder), cwd=source)
    run_command("chmod", "-R", "go-rwx", ".", cwd=folder)


def test_second_copy_lives_beside_the_first(stack: Stack, tmp_path: Path) -> None:
    """The command of docs/tasks.md gives the copy its own name, port and label."""
    source = shutil.copytree(stack.folder, tmp_path / "source")
    make_odd_clone(source, tmp_path / "clone")
    second = Stack(tmp_path / "cct", tmp_path / "clone", AUTOHEAL_LABEL=stack.name)
    start = TASKS.commands("Run a second copy").replace("5001", str(second.port))
    try:
        second.shell(start.replace("cct2", second.name))
        second.sql("UPDATE accounts SET name = 'second' WHERE id = 1")
        assert second.page()["accounts"][0]["name"] == "second"
        assert stack.page()["accounts"][0]["name"] != "second"
        assert set(second.images()) <= set(second.compose("config", "--images").split())

        second.docker("stop", second.container("autoheal"))
        second.get("/make-unhealthy")
        until(lambda: second.health() == "unhealthy", "unhealthy")
        stack.heal()
        assert second.health() == "unhealthy"  # the healer of the first leaves it alone
    finally:
        second.compose("down", "-v", "--rmi", "local")
    for command in ("container ls --all", "volume ls", "network ls", "image ls"):
        assert second.name not in docker(*command.split())
    assert len(stack.page()["accounts"]) == 50


def test_stop_right_after_the_start_needs_no_kill(stack: Stack) -> None:
    """Without an init, Python as process 1 ignores SIGTERM until it has a handler."""
    app = stack.container("app")
    stack.docker("stop", app)
    for seconds in (0, 0.1, 0.2, 0.3):
        stack.docker("start", app)
        time.sleep(seconds)  # a moment of its start
        stack.docker("stop", "--time=10", app)
        assert stack.inspect("app")["State"]["ExitCode"] in (0, 143)  # SIGTERM, not SIGKILL
    stack.up()


def test_secrets_beside_the_clone_get_into_no_build(tmp_path: Path) -> None:
    stack = Stack(tmp_path / "cct")
    secrets = ("passwords/app", "backup.sql", "my.csv", ".env", "docker-compose.override.yml")
    (stack.folder / "passwords").mkdir()
    for secret in secrets:
        (stack.folder / secret).touch()
    everything = tmp_path / "Dockerfile"
    everything.write_text("FROM scratch\nCOPY . /\n")
    context = tmp_path / "context"
    stack.docker("build", f"--file={everything}", f"--output=type=local,dest={context}", ".")

    assert (context / "server.py").exists()
    for secret in secrets:
        assert not (context / secret).exists()


def test_folder_with_other_letters_is_built(tmp_path: Path) -> None:
    """docs/tasks.md uses the older builder of Compose."""
    stack = Stack(tmp_path / "Café")
    try:
        stack.shell(TASKS.commands("Build in a folder with non-ASCII letters"))
    finally:
        stack.down()
