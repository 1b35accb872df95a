"""The first start of the database: cut off, and started again."""

import pytest

from tests.stack import Stack
from tools.waiting import until

# What MySQL and users.sh make in a first start, in this order.
STATES = ("mysql.ibd", "sys", "cct", "cct-first-start-complete")


def leave_half_made_data(stack: Stack) -> None:
    """Make the data volume as a full disk leaves it."""
    files = "mkdir data/'#innodb_temp'; echo half >data/ibdata1; chown -R 999 data/*"
    volume = f"--volume={stack.name}_data:/data"
    stack.docker("run", "--rm", volume, "mysql:9.7", "sh", "-c", f"cd /; {files}")


def kill_in(stack: Stack, state: str) -> None:
    """Kill db as soon as its data has a file or folder with this name. Wait for its restart."""
    started = stack.started("db")
    wait = f"until test -e /proc/$pid/root/var/lib/mysql/{state}; do sleep 0.02; done"
    stack.on_host("db", f"export pid; timeout 240 sh -c '{wait}' && kill -KILL $pid")
    until(lambda: stack.started("db") != started, "restarted")


def test_first_start_that_is_cut_off_begins_again(stack: Stack) -> None:
    """The start finds half-made data. Then the start is killed in each of its states."""
    stack.compose("down", "-v")
    stack.compose("create", "db")
    leave_half_made_data(stack)
    stack.compose("up", "-d", "db")
    for state in STATES:
        kill_in(stack, state)
    stack.up()
    assert stack.logs("db").count("The first start of the database was cut off.") >= 3
    assert len(stack.page()["accounts"]) == 50
    assert stack.sql("SELECT host FROM mysql.user WHERE user = 'root'") == "localhost\n"
    with pytest.raises(AssertionError, match="Access denied"):
        stack.exec("db", "mysql", "--user=root", "-e", "SELECT 1")  # without a password


def test_data_with_tables_is_always_kept(stack: Stack) -> None:
    """Old data lacks the file that marks a complete first start. It is kept, too."""
    rows = stack.sql("CHECKSUM TABLE accounts")
    marker = "/var/lib/mysql/cct-first-start-complete"
    stack.exec("db", "rm", marker)
    stack.compose("restart", "db")
    stack.wait_until_healthy("db")
    assert stack.sql("CHECKSUM TABLE accounts") == rows
    stack.exec("db", "touch", marker)
