"""The first start of the database: cut off, and started again. No other data is deleted."""

import pytest

from tests.stack import Stack, docker
from tools.waiting import until

MARKER = ".cct-first-start"

# What MySQL and users.sh make in a first start, in this order: conditions for `test`.
STATES = (f"-e {MARKER}", "-e mysql.ibd", "-e sys", "-e cct", f"! -e {MARKER}")


def signal_in(stack: Stack, state: str, signal: str) -> None:
    """Send a signal to db as soon as its data has a state."""
    wait = f"cd /proc/$pid/root/var/lib/mysql; until test {state}; do sleep 0.02; done"
    stack.on_host("db", f"export pid; timeout 240 sh -c '{wait}' && kill -{signal} $pid")


def kill_in(stack: Stack, state: str) -> None:
    """Kill db in a state. Wait for its restart."""
    started = stack.started("db")
    signal_in(stack, state, "KILL")
    until(lambda: stack.started("db") != started, "restarted")


def test_first_start_that_is_cut_off_begins_again(stack: Stack) -> None:
    """The start is killed in each of its states."""
    stack.compose("down", "-v")
    stack.compose("up", "-d", "db")
    for state in STATES:
        kill_in(stack, state)
    stack.up()
    assert stack.logs("db").count("The first start of the database was cut off.") == 4
    assert len(stack.page()["accounts"]) == 50
    assert stack.sql("SELECT host FROM mysql.user WHERE user = 'root'") == "localhost\n"
    with pytest.raises(AssertionError, match="Access denied"):
        stack.exec("db", "mysql", "--user=root", "-e", "SELECT 1")  # without a password


def test_first_start_is_healthy_only_with_its_users(stack: Stack) -> None:
    """The temporary server of a first start answers on its socket, but the probe fails."""
    stack.compose("down", "-v")
    stack.compose("up", "-d", "db")
    signal_in(stack, "-e cct", "STOP")  # stops the script of the first start, not the server
    stack.exec("db", "mysqladmin", "ping")
    probe = stack.inspect("db")["Config"]["Healthcheck"]["Test"][1:]
    with pytest.raises(AssertionError, match="Can't connect to MySQL server"):
        stack.exec("db", *probe)
    stack.on_host("db", "kill -CONT $pid")
    stack.up()
    stack.exec("db", *probe)


def test_files_of_others_are_kept(stack: Stack) -> None:
    """Files that no first start of db made are not deleted. db tells what to do."""
    stack.compose("down", "-v")
    stack.compose("create", "db")
    volume = f"--volume={stack.name}_data:/data"
    docker("run", "--rm", volume, "mysql:9.7", "sh", "-c", "echo mine >/data/ibdata1")
    stack.compose("up", "-d", "db")
    until(lambda: stack.inspect("db")["RestartCount"] > 0, "refused")
    assert "The volume data has files, but no database. Nothing was deleted." in stack.logs("db")
    take = "cat /data/ibdata1; rm /data/ibdata1"
    assert docker("run", "--rm", volume, "mysql:9.7", "sh", "-c", take) == "mine\n"
    stack.wait_until_healthy("db")  # between two restarts, db is unhealthy, and `up` fails
    stack.up()


def test_table_without_a_file_of_its_own_is_kept(stack: Stack) -> None:
    """A table in MySQL's own file, as with innodb_file_per_table=OFF, leaves the folder empty."""
    stack.sql("ALTER TABLE accounts TABLESPACE innodb_system")
    rows = stack.sql("CHECKSUM TABLE accounts")
    assert stack.exec("db", "ls", "/var/lib/mysql/cct") == ""
    stack.compose("restart", "db")
    stack.wait_until_healthy("db")
    assert stack.sql("CHECKSUM TABLE accounts") == rows
    stack.sql("ALTER TABLE accounts TABLESPACE innodb_file_per_table")
