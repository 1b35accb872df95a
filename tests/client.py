"""Requests of the Swarm and Kubernetes tests, from a container: GET a path, and clients that never try again.

`load` starts this file in a container, as a program: python -c PROGRAM HOST CLIENTS PAUSE. Half of the clients keep a
connection for as long as the server does, the others make one for each request.
"""

import json
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
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
TURNS = 20_000  # requests of one client at most
answers, failures = Counter[str](), Counter[str]()  # by container, by kind
over = Event()
Load = AbstractContextManager[list[dict[str, int]]]


def ask(host: str, pause: float, number: int) -> None:
    """Make the requests of one client, one after the other."""
    connection = None
    for turn in range(number, number + TURNS):
        try:
            if connection is None or connection.sock is None:  # to another of the name's addresses each time
                addresses = sorted({str(info[4][0]) for info in socket.getaddrinfo(host, 80)})
                connection = HTTPConnection(addresses[turn % len(addresses)], timeout=10)
            connection.request("GET", "/", headers={"Accept": "application/json"})
            response = connection.getresponse()
            text = response.read()
            assert response.status == 200, response.status
            answers[json.loads(text)["container"]] += 1
            if number % 2 == 1:
                connection.close()
        except Exception as error:  # whatever comes instead of a page
            failures[repr(error)] += 1
            connection = None
        if over.wait(pause):
            return


@contextmanager
def load(
    container: list[str], host: str, report: Callable[[str], None], event: str, may_fail: str = "nothing", *options: str
) -> Iterator[list[dict[str, int]]]:
    """Keep the app busy in the context, then give answers and failures; AssertionError if others than `may_fail`."""
    program = [*container, "python", "-c", Path(__file__).read_text(), host, *(options or ("8", "0.05"))]
    results: list[dict[str, int]] = []
    with Popen(program, stdin=PIPE, stdout=PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "started\n"
        began = time.monotonic()
        yield results
        seconds = time.monotonic() - began
        results += json.loads(process.communicate(timeout=60)[0])
    answered, failed = (sum(result.values()) for result in results)
    report(f"{event}: {seconds:.1f} s, {failed} of {answered + failed} requests failed")
    assert all(may_fail in kind for kind in results[1]), f"requests failed: {results[1]}"


if __name__ == "__main__":
    with ThreadPoolExecutor(clients := int(sys.argv[2])) as pool:
        pool.map(lambda number: ask(sys.argv[1], float(sys.argv[3]), number), range(clients))
        print("started", flush=True)
        sys.stdin.read()
        over.set()
    print(json.dumps([answers, failures]))
