"""The first start of the database: cut off, and started again. No other data is deleted."""

import pytest

from tests.stack import Stack, docker
from tools.waiting import until

MARKER = ".cct-first-start"

# What MySQL and users.sh make in a first start, in this order: conditions for `test`.
STATES = (f"-e {MARKER}", "-e mysql.ibd", "-e sys", "-e cct", f"! -e {MARKER}")


def in_volume(stack: Stack, command: str) -> str:
    """Run a shell command on the volume of db, which is /data there."""
    volume = f"--volume={stack.name}_data:/data"
    return docker("run", "--rm", volume, "mysql:9.7", "sh", "-c", command)


def kill_in(stack: Stack, state: str) -> None:
    """Kill db as soon as its data has a state. Wait for its restart."""
    started = stack.started("db")
    wait = f"cd /proc/$pid/root/var/lib/mysql; until test {state}; do sleep 0.02; done"
    stack.on_host("db", f"export pid; timeout 240 sh -c '{wait}' && kill -KILL $pid")
    until(lambda: stack.started("db") != started, "restarted")


def test_first_start_that_is_cut_off_begins_again(stack: Stack) -> None:
    """The start is killed in each of its states. The volume is a disk: it has lost+found."""
    stack.compose("down", "-v")
    stack.compose("create", "db")
    in_volume(stack, "mkdir /data/lost+found")
    stack.compose("up", "-d", "db")
    for state in STATES:
        kill_in(stack, state)
    stack.up()
    assert stack.logs("db").count("The first start of the database was cut off.") == 4
    assert len(stack.page()["accounts"]) == 50
    assert stack.sql("SELECT host FROM mysql.user WHERE user = 'root'") == "localhost\n"
    with pytest.raises(AssertionError, match="Access denied"):
        stack.exec("db", "mysql", "--user=root", "-e", "SELECT 1")  # without a password


def test_files_of_others_are_kept(stack: Stack) -> None:
    """Files that no first start of db made are not deleted. db tells what to do."""
    stack.compose("down", "-v")
    stack.compose("create", "db")
    in_volume(stack, "echo mine >/data/ibdata1")
    stack.compose("up", "-d", "db")
    until(lambda: stack.inspect("db")["RestartCount"] > 0, "refused")
    assert "The volume data has files, but no database. Nothing was deleted." in stack.logs("db")
    assert in_volume(stack, "cat /data/ibdata1; rm /data/ibdata1") == "mine\n"
    stack.wait_until_healthy("db")  # between two restarts, db is unhealthy, and `up` fails
    stack.up()
