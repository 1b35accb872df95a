"""Where the instructions of a request go: callgrind counts them, however busy the machine is."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

from bench.programs import CEILING, PROGRAMS, Server, serving
from tests.database import DatabaseServer

CONNECTIONS, REQUESTS = 64, 50  # on each connection
REQUEST = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
VALGRIND = "valgrind --tool=callgrind --instr-atstart=no --callgrind-out-file=/dev/null --log-file={pages}/valgrind"
# Each program lacks a part more than the one before.
STEPS = {
    "the query and its rows": "python parts.py",
    "sharing: joining a read, waiting for its turn": "python parts.py query",
    "the log line": "python parts.py query sharing",
    "`guard`, with a turn of the loop": "python parts.py query sharing log",
    "the handler and its response": "python parts.py query sharing log guard",
}


def switch(state: str, served: Server) -> None:
    """Switch the counting on or off."""
    host = {"HOST": "127.0.0.1"}  # as the server has it: it is in the name of the pipe to valgrind
    command = ["callgrind_control", "-i", state, str(served.process.pid)]
    subprocess.run(command, env=os.environ | host, check=True, capture_output=True)


def count(command: str, database: DatabaseServer, pages: Path) -> float:
    """Return the instructions that a program needs for a request; the kernel's are not counted."""
    with serving(f"{VALGRIND} {command}", database, pages) as served, ExitStack() as stack:
        served.page()
        size = round(served.load(CONNECTIONS, 1).size)
        address = ("127.0.0.1", served.port)
        clients = [
            stack.enter_context(socket.create_connection(address)) for _ in range(CONNECTIONS)
        ]
        switch("on", served)
        for _ in range(REQUESTS):
            for client in clients:
                client.sendall(REQUEST)
            for client in clients:
                client.recv(size, socket.MSG_WAITALL)
        switch("off", served)
    collected = (pages / "valgrind").read_text().rpartition("Collected : ")[2].split()[0]
    return float(collected) / (CONNECTIONS * REQUESTS)


def instructions(database: DatabaseServer, pages: Path) -> Iterator[str]:
    """Yield the table of the parts."""
    if not shutil.which("valgrind"):
        yield "Instructions were not counted: there is no valgrind."
        return
    counts = [count(program, database, pages) for program in (*STEPS.values(), PROGRAMS[CEILING])]
    yield f"| {CONNECTIONS} connections | instructions a request | of the ceiling |"
    yield "|---|--:|--:|"
    for name, instructions in (
        ("cct", counts[0]),
        *(
            (f"of it {part}", more - less)
            for part, (more, less) in zip(STEPS, pairwise(counts), strict=True)
        ),
        (CEILING, counts[-1]),
    ):
        yield f"| {name} | {instructions:,.0f} | {instructions / counts[-1]:.2f} |"
