"""Clients that make requests while something fails."""

import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

from tests.stack import Stack
from tools.waiting import until

SENTENCE = re.compile(r"The database does not answer\.|The accounts cannot be read\.")


class Answer(NamedTuple):
    """One request and its answer. Status 0 means no answer. Times are on the monotonic clock."""

    began: float
    status: int
    text: str
    ended: float


class Clients:
    """Four clients for the page and one for /health. They pause for 0.1 s after each answer."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.pages: list[Answer] = []
        self.healths: list[Answer] = []
        self.stopped = threading.Event()

    def ask(self, path: str, answers: list[Answer]) -> None:
        """Make the requests of one client."""
        while not self.stopped.wait(0.1):
            began = time.monotonic()
            status, text = self.stack.get(path)
            answers.append(Answer(began, status, text, time.monotonic()))

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the clients until the end of the context."""
        with ThreadPoolExecutor(5) as pool:
            clients = [pool.submit(self.ask, "/", self.pages) for _ in range(4)]
            clients.append(pool.submit(self.ask, "/health", self.healths))
            try:
                self.wait_for(200, 0)
                yield
            finally:
                self.stopped.set()
        for client in clients:
            client.result()  # raises what ended it

    def pages_since(self, status: int, moment: float) -> list[Answer]:
        """Return the answers with this status whose requests began later than `moment`."""
        return [page for page in self.pages if page.began > moment and page.status == status]

    def wait_for(self, status: int, moment: float, seconds: float = 60) -> Answer:
        """Wait for an answer with this status whose request began later than `moment`."""
        pages = until(lambda: self.pages_since(status, moment), f"a {status}", seconds)
        return pages[0]


@contextmanager
def load(stack: Stack, *allowed: int) -> Iterator[Clients]:
    """Run clients until the end of the context; then assert what they saw.

    Each status must be 200 or allowed, each page must be whole, and no row may be lost. If
    status 0 is not allowed, each answer of /health must be a 200.
    """
    rows = stack.sql("CHECKSUM TABLE accounts")
    clients = Clients(stack)
    with clients.running():
        yield clients

    for page in clients.pages:
        assert page.status in (200, *allowed)
        if page.status == 200:
            assert page.text.count('<th scope="row">') == 50
        if page.status == 503:
            assert SENTENCE.search(page.text)
    if 0 not in allowed:
        for health in clients.healths:
            assert health.status == 200
    assert stack.sql("CHECKSUM TABLE accounts") == rows
