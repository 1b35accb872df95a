"""Overload: other clients do not notice it, or get a 503 in time."""

import time

import pytest

from tests.app.attacks import (
    ask_for_random_pages,
    attacked,
    send_many_fields,
    send_single_bytes,
    send_without_pause,
    send_zeros,
)
from tests.app.conftest import ServerProcess, StartServer, linux
from tests.conftest import Report
from tools.waiting import until

pytestmark = pytest.mark.timed

ATTACKS = {
    "requests without pause": (send_without_pause, 20),
    "zeros": (send_zeros, 30),
    "many fields": (send_many_fields, 300),
    "single bytes": (send_single_bytes, 20),
    "a load": (ask_for_random_pages, 1000),
}


@linux
@pytest.mark.parametrize("name", ATTACKS)
def test_nobody_notices_an_attack(server: ServerProcess, report: Report, name: str) -> None:
    """No probe fails (it waits for 2 s), and the server needs little of its 256 MB."""
    attack, clients = ATTACKS[name]
    idle = server.cpu_time()
    slowest = 0.0
    with attacked(server.port, attack, clients):
        until(lambda: server.cpu_time() > idle + 0.5, "under attack")
        end = time.monotonic() + 4
        while time.monotonic() < end:
            began = time.monotonic()
            assert server.get("/health", 2) == (200, "healthy\n")
            slowest = max(slowest, time.monotonic() - began)
            assert server.get("/")[0] == 200
    megabytes = server.memory("VmHWM") / 1024
    report(f"/health within {slowest:.2f} s, {megabytes:.0f} MB")
    assert megabytes < 200
    until(lambda: is_at_rest(server), "at rest", 10)


def is_at_rest(server: ServerProcess) -> bool:
    """Return whether the server needs little CPU time now."""
    before = server.cpu_time()
    time.sleep(0.5)
    return server.cpu_time() < before + 0.1


def get_in_time(server: ServerProcess, path: str) -> tuple[int, str]:
    """Return the status and text of an answer; assert that it took less than 2 s."""
    began = time.monotonic()
    answer = server.get(path)
    assert time.monotonic() < began + 2
    return answer


@pytest.mark.parametrize("clients", [1000, 3000])
def test_too_many_pages_are_a_503_in_time(start_server: StartServer, clients: int) -> None:
    server = start_server(DB_TIMEOUT="1")
    assert server.get()[0] == 200
    with attacked(server.port, ask_for_random_pages, clients):
        until(lambda: server.log.read_text().count("GET '/?after=") > clients, "under load")
        for _ in range(3):
            status, text = get_in_time(server, "/")
            assert status == 200 or "The database does not answer." in text
            status, text = get_in_time(server, "/ready")
            assert status == 200 or text.startswith("not ready: The database does not answer.")
            assert get_in_time(server, "/health") == (200, "healthy\n")
    until(lambda: server.get()[0] == 200, "served again")
