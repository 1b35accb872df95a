"""Clients of the Swarm and Kubernetes tests, in a container: a GET request, and a load that never tries again.

`load` starts this file there. Half of its clients keep their connection, the others make one for each request.
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
from http.client import HTTPConnection
from pathlib import Path
from subprocess import PIPE, Popen
from threading import Event

GET = """
import http.client, sys
client = http.client.HTTPConnection(sys.argv[1], timeout=10)
client.request("GET", sys.argv[2], headers={"Accept": "application/json"})
print(client.getresponse().read().decode())
"""
answers, failures = Counter[str](), Counter[str]()  # by container, by kind
over = Event()


def ask(number: int) -> None:
    """Make the requests of one client, one after the other."""
    connection = None
    while not over.wait(0.05):
        try:
            if connection is None or connection.sock is None:  # to another of the name's addresses each time
                addresses = [str(info[4][0]) for info in socket.getaddrinfo(sys.argv[1], 80)]
                connection = HTTPConnection(random.choice(addresses), timeout=10)
            connection.request("GET", "/", headers={"Accept": "application/json"})
            response = connection.getresponse()
            assert response.status == 200, response.status
            answers[json.load(response)["container"]] += 1
            if number % 2 == 1:
                connection.close()
        except Exception as error:  # whatever comes instead of a page
            failures[repr(error)] += 1
            connection = None


@contextmanager
def load(
    container: list[str], host: str, report: Callable[[str], None], event: str, may_fail: str = "nothing"
) -> Iterator[list[dict[str, int]]]:
    """Keep the app busy in the context, then give answers and failures; AssertionError if others than `may_fail`."""
    results: list[dict[str, int]] = []
    program = [*container, "python", "-c", Path(__file__).read_text(), host]
    with Popen(program, stdin=PIPE, stdout=PIPE, text=True) as process:
        assert next(iter(process.stdout or ())) == "started\n"
        began = time.monotonic()
        yield results
        seconds = time.monotonic() - began
        results += json.loads(process.communicate(timeout=60)[0])
    answered, failed = (sum(result.values()) for result in results)
    report(f"{event}: {seconds:.1f} s, {failed} of {answered + failed} requests failed")
    assert all(may_fail in kind for kind in results[1]), f"requests failed: {results[1]}"


if __name__ == "__main__":
    with ThreadPoolExecutor(8) as pool:
        pool.map(ask, range(8))
        print("started", flush=True)
        sys.stdin.read()
        over.set()
    print(json.dumps([answers, failures]))
