"""What all tests share: where the project is, a free port, a GET request, and a wait for a condition."""

import socket
import time
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).parent.parent
T = TypeVar("T")


def free_port() -> int:
    """Return a TCP port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def get(port: int, path: str = "/", timeout: float = 10, **headers: str) -> tuple[int, str]:
    """Return status and text of an answer from 127.0.0.1, status 0 if there is none; user_agent is User-Agent."""
    client = HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        client.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        response = client.getresponse()
        return response.status, response.read().decode()
    except (OSError, HTTPException) as error:
        return 0, f"no answer: {error}"
    finally:
        client.close()


def until(condition: Callable[[], T], what: str, seconds: float = 60) -> T:
    """Return the first true result of a condition; AssertionError with `what` if there is none within `seconds`."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not {what} within {seconds} s"
        time.sleep(0.05)
    return result
