"""Wait for a condition, find a free port, make a GET request."""

import random
import socket
import time
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException
from typing import TypeVar

T = TypeVar("T")

RESERVATIONS: list[socket.socket] = []


def until(condition: Callable[[], T], description: str, seconds: float = 60) -> T:
    """Wait for a condition, and return its first true result.

    Raise AssertionError "not <description> within 60 s" if the condition is still false then. After
    a slow check, the pause is longer, up to a second, to leave the processor to others.
    """
    deadline = time.monotonic() + seconds
    while True:
        began = time.monotonic()
        result = condition()
        if result:
            return result
        now = time.monotonic()
        assert now < deadline, f"not {description} within {seconds} s"
        time.sleep(min(max(0.1, 2 * (now - began)), 1))


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that is free, and that no other process gets from here.

    A UDP socket with the same number is the reservation. It lasts until this process ends.
    """
    while True:
        port = random.randrange(20_000, 30_000)  # the kernel gives clients ports from 32768
        reservation = socket.socket(type=socket.SOCK_DGRAM)
        try:
            reservation.bind(("127.0.0.1", port))
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            reservation.close()
            continue
        RESERVATIONS.append(reservation)
        return port


def get(port: int, path: str = "/", timeout: float = 10, **headers: str) -> tuple[int, str]:
    """Return the status and text of an answer from 127.0.0.1; status 0 if there is no answer.

    Headers are keywords: user_agent is User-Agent. The timeout is in seconds.
    """
    client = HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        client.request("GET", path, headers=named)
        response = client.getresponse()
        return response.status, response.read().decode()
    except (OSError, HTTPException) as error:
        return 0, f"no answer: {error}"
    finally:
        client.close()
