"""What the running stack does. Each test repairs what it changes, so the order is free."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser import OpenPage, steps
from tests.conftest import Report
from tests.engine.documents import task
from tests.shell import run_command
from tests.stack import Stack, docker, gateway, running_stack, start_mysql
from tools.waiting import free_port, until

START_PERIOD = 5  # seconds, in the Dockerfile
THREE_PROBES = 15
RESTART = 3
SERVICES = "docker compose ps --all --services"
EXTERNAL = "docker-compose.yml:deploy/docker-compose.external.yml"
HEALED = re.compile(r"^healthy again after \d+\.\d s$")


def test_whole_heal_is_shown(
    stack: Stack, open_page: OpenPage, tmp_path: Path, report: Report
) -> None:
    """`make screenshots` keeps the pictures: SCREENSHOTS names their folder."""
    pictures = Path(os.environ.get("SCREENSHOTS") or tmp_path)
    page = open_page(stack.port, viewport={"width": 800, "height": 640})
    before = page.locator("#started").inner_text()
    page.screenshot(path=pictures / "page.png")

    page.get_by_role("button", name="Make unhealthy").click()
    expect(page.get_by_text("probe 2 failed")).to_be_visible(timeout=30_000)
    page.screenshot(path=pictures / "unhealthy.png")
    page.reload()
    expect(page.get_by_text(HEALED)).to_be_visible(timeout=60_000)
    page.screenshot(path=pictures / "healed.png")

    report("\n".join(page.get_by_role("listitem").all_text_contents()))
    told = steps(page)
    assert told[:3] == ["made unhealthy", "probe 1 failed", "probe 2 failed"]
    assert set(told[3:-1]) <= {"probe 3 failed", "restarting (no answer)", "no answer"}
    expect(page.locator("#started")).not_to_have_text(before)
    expect(page.get_by_role("button")).to_be_enabled()


def test_flag_is_healed(stack: Stack, report: Report) -> None:
    before = stack.page()
    started = stack.started()
    began = time.monotonic()
    _, reason = stack.get("/make-unhealthy")
    until(lambda: stack.started() != started, "restarted")
    log = stack.inspect("app")["State"]["Health"]["Log"]  # the restart keeps it
    assert [probe["Output"] for probe in log].count(reason) >= 3
    until(lambda: stack.health() == "healthy", "healed")
    report(f"healthy again after {time.monotonic() - began:.1f} s")

    after = stack.page()
    assert after["started"] != before["started"]
    assert after | {"started": ""} == before | {"started": ""}
    assert f"/{stack.container('app')} (" in stack.logs("autoheal")


def test_flag_right_after_the_start_is_healed(stack: Stack) -> None:
    stack.compose("up", "-d", "--force-recreate", "--no-deps", "app")
    until(lambda: stack.get("/make-unhealthy")[0] == 200, "unhealthy")
    started = stack.started()

    def is_healed() -> bool:
        return stack.started() != started and stack.health() == "healthy"

    until(is_healed, "healed", START_PERIOD + THREE_PROBES + RESTART)


def test_restart_keeps_the_accounts(stack: Stack) -> None:
    stack.sql("UPDATE accounts SET name = 'edited' WHERE id = 1; DELETE FROM accounts WHERE id = 2")
    accounts = stack.page()["accounts"]
    stack.compose("restart")
    until(lambda: stack.get()[0] == 200, "answering")
    assert stack.page()["accounts"] == accounts


def test_down_keeps_the_accounts_and_the_passwords(stack: Stack) -> None:
    accounts = stack.page()["accounts"]
    passwords = stack.passwords()
    stack.compose("down")
    stack.up()
    assert stack.page()["accounts"] == accounts
    assert stack.passwords() == passwords
    assert stack.logs("seeder").endswith("the table has rows already: nothing to do\n")


def test_rotated_passwords_need_no_restart(stack: Stack) -> None:
    old = stack.passwords()
    started = stack.started()
    stack.exec("db", "users.sh", "rotate")

    login = ("mysql", "-h127.0.0.1", "-uapp", f"-p{old[0]}", "cct")
    with pytest.raises(AssertionError, match="Access denied"):
        stack.exec("db", *login)
    stack.end_app_connections()
    assert stack.get("/ready") == (200, "ready\n")
    stack.up()  # the seeder logs in with its new password
    assert stack.started() == started
    assert stack.passwords()[0] != old[0]
    assert stack.passwords()[2] != old[2]


def test_each_step_of_a_rotation_leaves_a_good_password(stack: Stack) -> None:
    """After each SQL statement of `rotate`, both users can log in with the password of the file."""
    login = "mysql -h 127.0.0.1 -u $user -e 'SELECT 1' cct"
    check = f"for user in app seeder; do MYSQL_PWD=$(cat /run/secrets/$user/password) {login}; done"
    steps = f'as-root.sh() {{ command as-root.sh "$@" && {check}; }}; export -f as-root.sh'
    stack.exec("db", "bash", "-ec", f"{steps}; bash -x /usr/local/bin/users.sh rotate")


def test_missing_column_is_named_and_repaired(stack: Stack) -> None:
    """A newer version may expect a column that an older table lacks."""
    stack.sql("ALTER TABLE accounts DROP COLUMN email")
    stack.up()
    reason = "missing column: Unknown column 'email' in 'field list'\n"
    assert stack.get("/ready") == (503, f"not ready: {reason}")
    assert f"accounts cannot be read: {reason}" in stack.logs("app")

    stack.sql("ALTER TABLE accounts ADD COLUMN email VARCHAR(254) NOT NULL DEFAULT ''")
    assert len(stack.page()["accounts"]) == 50


@contextmanager
def watched(stack: Stack) -> Iterator[list[str]]:
    """Run `docker compose watch`, and yield a list. After the context, the list has the output."""
    lines: list[str] = []
    command = ["docker", "compose", "watch", "--no-up"]
    with subprocess.Popen(
        command,
        cwd=stack.folder,
        env=stack.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as watch:
        assert watch.stdout
        try:
            while "Watch enabled" not in "".join(lines):
                lines.append(watch.stdout.readline())
            yield lines
        finally:
            watch.terminate()
            lines += watch.stdout.readlines()


def test_watch_shows_an_edited_page(stack: Stack) -> None:
    page = stack.folder / "page" / "page.html"
    original = page.read_text()
    with watched(stack):
        page.write_text(original.replace("<h1>", "<h1>Edited "))
        until(lambda: "<h1>Edited " in stack.get()[1], "shown")
    page.write_text(original)
    stack.up()


def test_watch_ignores_what_is_in_no_image(stack: Stack) -> None:
    """Only the last of six changed files is in an image: there is one rebuild."""
    (stack.folder / ".git").mkdir()
    program = stack.folder / "server.py"
    original = program.read_text()
    with watched(stack) as lines:
        for name in ("README.md", "docs/tour.md", "backup.sql", "my.csv", ".git/changed"):
            with (stack.folder / name).open("a") as file:
                file.write("changed\n")
            time.sleep(1)  # watch collects changes for half a second
        program.write_text(original.replace('"ready"', '"ready now"'))
        until(lambda: stack.get("/ready")[1] == "ready now\n", "shown")
    assert len([line for line in lines if line.startswith("Rebuilding service")]) == 1
    program.write_text(original)
    shutil.rmtree(stack.folder / ".git")
    stack.up()


def clone_as_on_windows(source: Path, folder: Path) -> None:
    """Make a repository of a folder, and clone it with the line ends of Windows."""
    git = ("git", "-c", "user.name=x", "-c", "user.email=x")
    for command in ("init -q .", "add .", "commit -qm x"):
        run_command(*git, *command.split(), cwd=source)
    run_command(*git, "clone", "-q", "-c", "core.autocrlf=true", ".", str(folder), cwd=source)


def test_second_copy_lives_beside_the_first(stack: Stack, tmp_path: Path) -> None:
    clone_as_on_windows(stack.folder, tmp_path / "clone")
    with running_stack(tmp_path / "cct", tmp_path / "clone") as second:
        second.sql("UPDATE accounts SET name = 'second' WHERE id = 1")
        assert second.page()["accounts"][0]["name"] == "second"
        assert stack.page()["accounts"][0]["name"] != "second"
        for image, other in zip(stack.images(), second.images(), strict=True):
            assert image != other

        stack.compose("stop", "autoheal")
        stack.get("/make-unhealthy")
        until(lambda: stack.health() == "unhealthy", "unhealthy")
        started = second.started()
        second.get("/make-unhealthy")
        until(lambda: second.started() != started, "healed by its own healer")
        assert stack.health() == "unhealthy"  # the other's healer leaves it alone
        stack.compose("start", "autoheal")
        until(lambda: stack.health() == "healthy", "healed")
    assert len(stack.page()["accounts"]) == 50


def test_database_elsewhere_is_used_and_left_again(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands of docs/tasks.md move a running stack there. `down` and `up` move it back."""
    accounts = stack.page()["accounts"]
    host = gateway()
    port = str(free_port())
    name = f"{stack.name}-elsewhere"
    options = (f"--bind-address={host}", f"--port={port}", "--mysqlx=0")
    passwords = stack.folder / "passwords"
    passwords.mkdir()
    go = task("Use a database elsewhere").replace("mysql.example.com", host)
    go = go.replace("3307", port).replace("verify-identity", "required")
    monkeypatch.setitem(stack.env, "SEED_ACCOUNTS", "7")
    try:
        start_mysql(name, f"{stack.name}-db", passwords, "--network=host", *options)
        stack.shell(go)
        assert len(stack.page()["accounts"]) == 7
        services = stack.shell(f"export COMPOSE_FILE={EXTERNAL} DB_HOST={host}; {SERVICES}")
        assert services.split() == ["app", "autoheal", "seeder"]
        stack.shell(f"export COMPOSE_FILE={EXTERNAL} DB_HOST={host}; docker compose down")
    finally:
        docker("rm", "-f", "-v", name)
    stack.up()
    assert stack.page()["accounts"] == accounts


def test_database_elsewhere_must_be_named(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(stack.env, "COMPOSE_FILE", EXTERNAL)
    with pytest.raises(AssertionError, match="DB_HOST is missing a value: must name the host"):
        stack.compose("config")


def test_backup_is_restored(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore into a new stack, after a loss of rows, and after a loss of the table."""
    rows = stack.sql("CHECKSUM TABLE accounts")
    stack.shell(task("Backup"))
    stack.compose("down", "-v")
    monkeypatch.setitem(stack.env, "SEED_ACCOUNTS", "0")
    stack.up()
    for loss in ("DO 0", "DELETE FROM accounts WHERE id > 50", "DROP TABLE accounts"):
        stack.sql(loss)
        assert stack.sql("CHECKSUM TABLE accounts") != rows
        stack.shell(task("Restore"))
        assert stack.sql("CHECKSUM TABLE accounts") == rows


def test_emptied_password_volume_is_named(stack: Stack) -> None:
    password = stack.passwords()[0]
    stack.compose("down")
    volume = f"{stack.name}_app-password"
    docker("volume", "rm", volume)
    stack.compose("up", "-d", "db")
    sentence = (
        "The volume app-password is empty, but the data has that user's old password: "
        "bring the volume back"
    )
    until(lambda: sentence in stack.logs("db"), "told")
    until(lambda: stack.inspect("db")["RestartCount"] > 0, "refused")

    bring_back = f"echo {password} >/volume/password; chmod 444 /volume/password"
    docker("run", "--rm", f"--volume={volume}:/volume", "mysql:9.7", "sh", "-c", bring_back)
    stack.up()
    assert len(stack.page()["accounts"]) == 50


def test_down_with_v_and_rmi_deletes_everything(tmp_path: Path) -> None:
    stack = Stack(tmp_path / "cct")
    stack.compose("create", "--build")
    assert all(resources(stack))
    stack.compose("down", "-v", "--rmi", "local")
    assert not any(resources(stack))


def resources(stack: Stack) -> list[str]:
    """Return the ids of a stack's containers, volumes, networks and images."""
    project = f"label=com.docker.compose.project={stack.name}"
    return [
        docker("container", "ls", "--all", "--quiet", "--filter", project),
        docker("volume", "ls", "--quiet", "--filter", project),
        docker("network", "ls", "--quiet", "--filter", project),
        docker("image", "ls", "--quiet", f"{stack.name}-*"),
    ]
