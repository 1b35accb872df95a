"""GET /state: what an open page asks for every second."""

import json
import time
from typing import Any

from tests.app.conftest import ServerProcess
from tests.app.test_sharing import count_queries
from tools.private_database import PrivateDatabase
from tools.waiting import until


def state(server: ServerProcess) -> dict[str, Any]:
    """Return the answer of /state. It comes at once, long before DB_TIMEOUT."""
    status, text = server.get("/state", 1)
    assert status == 200, text
    return dict(json.loads(text))


def test_state_has_what_the_page_shows_but_accounts(server: ServerProcess) -> None:
    _, text = server.get("/", accept="application/json")
    page = json.loads(text)
    del page["accounts"], page["next"]
    assert state(server) == page


def test_state_shows_that_the_database_is_lost_and_found(
    database: PrivateDatabase, server: ServerProcess
) -> None:
    """No other request is necessary, and the log has no line for /state."""
    lost = "The database does not answer."
    assert state(server)["error"] == ""
    with database.hanging():
        until(lambda: state(server)["error"] == lost, "lost", 20)
    until(lambda: state(server)["error"] == "", "found", 20)
    server.wait_for("The accounts can be read again.")
    events = server.events()
    assert server.lines() == events
    assert len(events) == 4
    assert events[2].startswith(lost)


def test_hundred_questions_read_at_most_once_a_second(
    database: PrivateDatabase, server: ServerProcess
) -> None:
    state(server)
    before = count_queries(database)
    began = time.monotonic()
    for _ in range(100):
        state(server)
    seconds = time.monotonic() - began
    assert count_queries(database) - before <= 1 + seconds
    until(lambda: state(server) and count_queries(database) > before + 2, "read again", 20)
