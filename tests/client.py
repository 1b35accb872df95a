"""The load of the Swarm and Kubernetes tests: ask for the page until stdin ends, and never try again.

    python -c "$(cat tests/client.py)" HOST[:PORT] CLIENTS PAUSE

Half of the clients keep a connection for as long as the server does, the others make one for each request. Each waits
PAUSE seconds between two requests. Output: "started", then a line of JSON, [answers by container, failures by kind].
"""

import json
import socket
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from threading import Event

TURNS = 20_000  # requests of one client at most
answers, failures = Counter[str](), Counter[str]()
over = Event()


def ask(host: str, port: int, pause: float, number: int) -> None:
    """Make the requests of one client, one after the other."""
    connection = None
    for turn in range(number, number + TURNS):
        try:
            if connection is None or connection.sock is None:  # to another of the name's addresses each time
                addresses = sorted({str(info[4][0]) for info in socket.getaddrinfo(host, port)})
                connection = HTTPConnection(addresses[turn % len(addresses)], port, timeout=10)
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


if __name__ == "__main__":
    host, _, port = sys.argv[1].partition(":")
    clients, pause = int(sys.argv[2]), float(sys.argv[3])
    with ThreadPoolExecutor(clients) as pool:
        pool.map(lambda number: ask(host, int(port or 80), pause, number), range(clients))
        print("started", flush=True)
        sys.stdin.read()
        over.set()
    print(json.dumps([answers, failures]))
