"""Overload: other clients do not notice it, or get a 503 in time."""

import time

import pytest

from tests.app.attacks import Attack, ask_for_random_pages, attacked, send_without_pause
from tests.app.conftest import ServerProcess, StartServer, linux
from tests.conftest import Report
from tools.waiting import until

pytestmark = pytest.mark.timed


@linux
@pytest.mark.parametrize(
    ("attack", "clients"), [(ask_for_random_pages, 1000), (send_without_pause, 20)]
)
def test_nobody_notices_an_attack(
    server: ServerProcess, report: Report, attack: Attack, clients: int
) -> None:
    """No probe fails (it waits for 2 s), and the server needs little of its 256 MB."""
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


def test_too_many_pages_are_a_503_in_time(start_server: StartServer) -> None:
    server = start_server(DB_TIMEOUT="1")
    assert server.get()[0] == 200
    with attacked(server.port, ask_for_random_pages, 3000):
        until(lambda: server.log.read_text().count("GET '/?after=") > 3000, "under load")
        for _ in range(3):
            status, text = server.get("/", 2)
            assert status == 200 or "The database does not answer." in text
            status, text = server.get("/ready", 2)
            assert status == 200 or text.startswith("not ready: The database does not answer.")
            assert server.get("/health", 2) == (200, "healthy\n")
    until(lambda: server.get()[0] == 200, "served again")
