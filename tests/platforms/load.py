"""Load for the Swarm and Kubernetes tests: eight clients in a container. They never retry.

`load` starts this file in the container. Four clients keep their connection. The others connect
for each request.
"""

import json
import random
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from subprocess import PIPE, Popen
from threading import Event

CLIENTS = 8
PAUSE = 0.05  # seconds between two requests of a client

# A program that prints the answer to one GET request: python -c GET HOST PATH
GET = """
import http.client, sys
client = http.client.HTTPConnection(sys.argv[1], timeout=10)
client.request("GET", sys.argv[2], headers={"Accept": "application/json"})
print(client.getresponse().read().decode(), end="")
"""


@dataclass
class Outcome:
    """How many answers each container gave, and how many failures of each kind there were."""

    answers: dict[str, int] = field(default_factory=dict)  # by the container that answered
    failures: dict[str, int] = field(default_factory=dict)  # by kind


class RequestsFailed(AssertionError):
    """Requests failed in a way that is not allowed. The argument has the failures by kind."""


@contextmanager
def load(
    container: list[str],
    host: str,
    report: Callable[[str], None],
    event: str,
    may_fail: str = "nothing",
) -> Iterator[Outcome]:
    """Keep the app busy until the end of the context. Then the outcome is complete.

    `container` is the command that runs a program in the container. Failures whose text
    contains `may_fail` are allowed. Raise RequestsFailed for any other failure.
    """
    outcome = Outcome()
    program = [*container, "python", "-c", Path(__file__).read_text(), host]
    with Popen(program, stdin=PIPE, stdout=PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "started\n"
        began = time.monotonic()
        yield outcome
        seconds = time.monotonic() - began
        output, _ = process.communicate(timeout=60)
    outcome.answers, outcome.failures = json.loads(output)
    answered = sum(outcome.answers.values())
    failed = sum(outcome.failures.values())
    report(f"{event}: {seconds:.1f} s, {failed} of {answered + failed} requests failed")
    unexpected = [kind for kind in outcome.failures if may_fail not in kind]
    if unexpected:
        raise RequestsFailed(outcome.failures)


class Clients:
    """The clients in the container."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.answers = Counter[str]()
        self.failures = Counter[str]()
        self.over = Event()

    def run(self) -> None:
        """Make requests until standard input is closed; print the outcome."""
        with ThreadPoolExecutor(CLIENTS) as pool:
            for number in range(CLIENTS):
                pool.submit(self.ask, number % 2 == 0)
            print("started", flush=True)
            sys.stdin.read()
            self.over.set()
        print(json.dumps([self.answers, self.failures]))

    def ask(self, keeps_connection: bool) -> None:
        """Make the requests of one client, one after the other."""
        connection = None
        while not self.over.wait(PAUSE):
            try:
                if connection is None or connection.sock is None:
                    connection = self.connect()
                connection.request("GET", "/", headers={"Accept": "application/json"})
                response = connection.getresponse()
                assert response.status == 200, response.status
                self.answers[json.load(response)["container"]] += 1
                if not keeps_connection:
                    connection.close()
            except Exception as error:  # whatever comes instead of a page
                self.failures[repr(error)] += 1
                connection = None

    def connect(self) -> HTTPConnection:
        """Return a connection to a random address of the host."""
        addresses = [str(info[4][0]) for info in socket.getaddrinfo(self.host, 80)]
        return HTTPConnection(random.choice(addresses), timeout=10)


if __name__ == "__main__":
    Clients(sys.argv[1]).run()
