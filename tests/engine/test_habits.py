"""What people do with the project: odd clones, cut-off starts, mistakes with backups and files."""

import shutil
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.engine.documents import task
from tests.stack import Stack
from tools import ROOT
from tools.waiting import until

EXTERNAL = "docker-compose.yml:deploy/docker-compose.external.yml"


def test_stack_starts_from_a_clone_with_umask_077(tmp_path: Path) -> None:
    stack = Stack(tmp_path / "cct")
    stack.shell("chmod -R go-rwx .")
    try:
        stack.up()
        assert len(stack.page()["accounts"]) == 50
    finally:
        stack.down()


def test_database_comes_back_without_its_clone(stack: Stack, tmp_path: Path) -> None:
    """The folder of the project is moved while everything runs. Then db is killed."""
    started = stack.started("db")
    moved = shutil.move(stack.folder, tmp_path / "moved")
    original = stack.folder
    stack.folder = Path(moved)
    try:
        stack.on_host("db", "kill -KILL $pid")
        until(lambda: stack.started("db") != started, "restarted")
        until(lambda: stack.health("db") == "healthy", "healthy")
        until(lambda: stack.get("/ready")[0] == 200, "ready")
        stack.compose("restart")  # from its new place
        until(lambda: stack.get("/ready")[0] == 200, "ready")
    finally:
        stack.folder = original
        shutil.move(moved, original)


@pytest.fixture
def empty_stack(stack: Stack) -> Stack:
    """Return the stack without containers and volumes. The test starts the stack again."""
    stack.compose("down", "-v")
    return stack


def has_data(stack: Stack, name: str) -> bool:
    """Return whether a file or folder exists in the data of db."""
    try:
        stack.exec("db", "test", "-e", f"/var/lib/mysql/{name}")
    except AssertionError:
        return False
    return True


@pytest.mark.parametrize("latest", ["ibdata1", "sys", "cct", "cct-first-start-complete"])
def test_first_start_that_was_cut_off_begins_again(empty_stack: Stack, latest: str) -> None:
    """The first start is killed as soon as one of its files or folders exists."""
    empty_stack.compose("up", "-d", "db")
    until(lambda: has_data(empty_stack, latest), f"at {latest}")
    empty_stack.on_host("db", "kill -KILL $pid")
    empty_stack.up()
    assert len(empty_stack.page()["accounts"]) == 50
    assert empty_stack.sql("SELECT host FROM mysql.user WHERE user = 'root'") == "localhost\n"
    with pytest.raises(AssertionError, match="Access denied"):
        empty_stack.exec("db", "mysql", "--user=root", "-e", "SELECT 1")  # without a password


def test_first_start_with_half_made_data_begins_again(empty_stack: Stack) -> None:
    """A full disk, or a kill while MySQL makes its own files, leaves such data."""
    empty_stack.compose("create", "--build", "db")
    files = "mkdir data/'#innodb_temp'; echo half >data/ibdata1; chown -R 999 data/*"
    volume = f"--volume={empty_stack.name}_data:/data"
    empty_stack.docker("run", "--rm", volume, "mysql:9.7", "sh", "-c", f"cd /; {files}")
    empty_stack.up()
    assert "The first start of the database was cut off." in empty_stack.logs("db")
    assert len(empty_stack.page()["accounts"]) == 50


def test_data_with_tables_is_always_kept(stack: Stack) -> None:
    """Old data lacks the file that marks a complete first start. It is kept, too."""
    rows = stack.sql("CHECKSUM TABLE accounts")
    marker = "/var/lib/mysql/cct-first-start-complete"
    stack.exec("db", "rm", marker)
    stack.compose("restart", "db")
    until(lambda: stack.health("db") == "healthy", "healthy")
    assert stack.sql("CHECKSUM TABLE accounts") == rows
    stack.exec("db", "touch", marker)


def test_stop_right_after_the_start_takes_no_time(stack: Stack) -> None:
    """Without an init, Python as process 1 ignores SIGTERM until it has a handler."""
    app = stack.container("app")
    stack.docker("stop", app)
    for seconds in (0, 0.1, 0.2, 0.3):
        stack.docker("start", app)
        time.sleep(seconds)  # a moment of its start
        began = time.monotonic()
        stack.docker("stop", "--time=10", app)
        assert time.monotonic() - began < 8
        assert stack.inspect("app")["State"]["ExitCode"] in (0, 143)  # SIGTERM, not SIGKILL
    stack.up()


def test_backup_without_db_keeps_the_old_backup(stack: Stack) -> None:
    backup = stack.folder / "backup.sql"
    stack.shell(task("Backup"))
    before = backup.read_bytes()
    assert before.splitlines()[-1].startswith(b"-- Dump completed")

    stack.compose("stop", "db")
    with suppress(AssertionError):
        stack.shell(task("Backup"))
    stack.up()
    assert backup.read_bytes() == before


@pytest.mark.parametrize("part", [0, 0.5, 0.99])
def test_restore_refuses_an_incomplete_backup(stack: Stack, part: float) -> None:
    """An empty file, half of a backup, and one without the last line change nothing."""
    rows = stack.sql("CHECKSUM TABLE accounts")
    stack.shell(task("Backup"))
    backup = stack.folder / "backup.sql"
    text = backup.read_bytes()
    backup.write_bytes(text[: int(len(text) * part)])
    message = stack.shell(f"({task('Restore')}) 2>&1 || true")
    assert "backup.sql is not complete" in message
    assert stack.sql("CHECKSUM TABLE accounts") == rows


@pytest.mark.parametrize("content", ["name\nAda\n", "name,email\n,x\n", "name,email\nAda,x,y\n"])
def test_bad_csv_file_loses_no_account(stack: Stack, content: str) -> None:
    """The commands of docs/tasks.md check the file before they delete anything."""
    rows = stack.sql("CHECKSUM TABLE accounts")
    (stack.folder / "my.csv").write_text(content)
    commands = task("Load your own CSV")
    _, _, load = commands.partition(">my.csv\n")
    with pytest.raises(AssertionError, match=r"my.csv, line \d"):
        stack.shell(load)
    assert stack.sql("CHECKSUM TABLE accounts") == rows


def test_own_csv_file_is_loaded(stack: Stack) -> None:
    stack.shell(task("Load your own CSV"))
    names = [account["name"] for account in stack.page()["accounts"]]
    stack.sql("TRUNCATE accounts")
    stack.up()
    assert names == ["Ada Lovelace"]


def external_stack(folder: Path, host: str) -> Stack:
    """Return a stack for a database elsewhere. Its seeder gives up after a second."""
    passwords = folder / "passwords"
    passwords.mkdir(parents=True)
    for user in ("seeder", "app"):
        (passwords / user).write_text("secret")
    wait = folder / "wait.yml"
    wait.write_text('services: {seeder: {environment: {SEED_WAIT: "1"}}}\n')
    files = f"{EXTERNAL}:{wait}"
    settings = {"COMPOSE_FILE": files, "PASSWORDS": str(passwords), "DB_HOST": host}
    return Stack(folder / "cct", ROOT, **settings)


def test_unreachable_database_elsewhere_fails_once(tmp_path: Path) -> None:
    """The seeder retries for SEED_WAIT seconds, and is not restarted."""
    stack = external_stack(tmp_path, "127.0.0.2")
    try:
        with pytest.raises(AssertionError, match=r"seeder.* didn.t complete successfully"):
            stack.up()
        assert stack.logs("seeder").count("could not be seeded") == 1
    finally:
        stack.down()


def test_localhost_as_database_is_explained(tmp_path: Path) -> None:
    stack = external_stack(tmp_path, "localhost")
    try:
        with pytest.raises(AssertionError, match=r"seeder.* didn.t complete successfully"):
            stack.up()
        assert "In a container, localhost is the container" in stack.logs("seeder")
    finally:
        stack.down()


def test_secrets_beside_the_clone_get_into_no_build(stack: Stack, tmp_path: Path) -> None:
    secrets = ("passwords/app", "backup.sql", "my.csv", ".env", "docker-compose.override.yml")
    (stack.folder / "passwords").mkdir()
    for secret in secrets:
        (stack.folder / secret).touch()
    everything = tmp_path / "Dockerfile"
    everything.write_text("FROM scratch\nCOPY . /\n")
    output = f"--output=type=local,dest={tmp_path / 'context'}"
    stack.docker("build", "--file", str(everything), output, ".")

    sent = {
        str(file.relative_to(tmp_path / "context")) for file in (tmp_path / "context").rglob("*")
    }
    assert "server.py" in sent
    assert sent.isdisjoint(secrets)
    for secret in secrets:
        (stack.folder / secret).unlink()


def test_folder_with_other_letters_is_built(tmp_path: Path) -> None:
    """docs/tasks.md uses the older builder of Compose."""
    stack = Stack(tmp_path / "Café")
    try:
        stack.shell(task("Build in a folder with non-ASCII letters"))
    finally:
        stack.down()
