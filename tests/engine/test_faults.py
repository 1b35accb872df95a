"""Faults of the server, the healer, the seeder and the disk: the stack recovers by itself."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import Report
from tests.engine.clients import load
from tests.stack import Stack, running_stack
from tools.waiting import until


@contextmanager
def server_fault(stack: Stack, report: Report) -> Iterator[None]:
    """Run clients while a test breaks the server; then assert that the server was restarted."""
    started = stack.started()
    with load(stack, 0, 503) as clients:
        began = time.monotonic()
        yield
        gone = clients.wait_for(0, began)
        back = clients.wait_for(200, gone.ended)
        report(f"back after {back.ended - began:.1f} s")
        stack.wait_until_healthy()
    assert stack.started() != started


def test_server_killed(stack: Stack, report: Report) -> None:
    with server_fault(stack, report):
        stack.in_server("kill -KILL $pid")


def test_server_frozen(stack: Stack, report: Report) -> None:
    with server_fault(stack, report):
        stack.in_server("kill -STOP $pid")


def test_server_out_of_memory(stack: Stack, report: Report) -> None:
    """A program uses all memory of the container, and the kernel kills the server."""
    with server_fault(stack, report):
        server_goes_first = "echo 1000 >/proc/$pid/oom_score_adj"
        use_all = """python -c 'b"x" * 10**9'"""
        stack.in_server(f"{server_goes_first}; {use_all}")


def test_killed_healer_is_back_and_heals(stack: Stack) -> None:
    started = stack.started("autoheal")
    with load(stack):
        stack.on_host("autoheal", "kill -KILL $pid")
        until(lambda: stack.started("autoheal") != started, "restarted")
    stack.heal()


def test_killed_seeder_is_back_and_seeds(stack: Stack) -> None:
    stack.sql("TRUNCATE accounts")
    with stack.locked_table():
        stack.compose("start", "seeder")
        stack.on_host("seeder", "kill -KILL $pid")
    until(lambda: stack.sql("SELECT COUNT(*) FROM accounts") == "100\n", "seeded")
    assert stack.inspect("seeder")["RestartCount"] == 1


def test_full_disk_of_the_database(tmp_path: Path) -> None:
    """Reading still works, even over new connections. Writing works again when there is space."""
    disk = tmp_path / "disk.yml"
    options = "{type: tmpfs, device: tmpfs, o: size=300m}"
    disk.write_text(f"volumes: {{data: {{driver_opts: {options}}}}}\n")
    with running_stack(tmp_path / "cct", COMPOSE_FILE=f"docker-compose.yml:{disk}") as stack:
        stack.exec("db", "sh", "-c", "cat /dev/zero >/var/lib/mysql/filler || true")
        with pytest.raises(AssertionError, match=r"is full|Disk full|No space"):
            stack.sql("CREATE TABLE more (id INT)")
        stack.compose("restart", "app")
        stack.wait_until_healthy()
        assert len(stack.page()["accounts"]) == 50
        stack.exec("db", "rm", "/var/lib/mysql/filler")
        stack.sql("CREATE TABLE more (id INT)")
