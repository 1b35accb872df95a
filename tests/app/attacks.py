"""Attacks: clients that harm the server, in a process of their own."""

import asyncio
import multiprocessing
import random
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any

Attack = Callable[[int], Coroutine[Any, Any, None]]  # over one connection to a port

HEAD = b"HTTP/1.1\r\nHost: localhost\r\n"
NOTHING = b"GET /nothing " + HEAD + b"\r\n"
PAGE = b"GET /?after=1 " + HEAD + b"Accept: text/html\r\n\r\n"


async def pipeline(port: int) -> None:
    """Send nine requests at once, again and again. The server works on one, and eight wait."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while True:
        writer.write(NOTHING * 9)
        for _ in range(9):
            await reader.readuntil(b": Not Found\n")


async def send_without_pause(port: int) -> None:
    """Ask for pages, and read no answer, until the server closes the connection."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    while True:
        writer.write(PAGE * 1000)
        await writer.drain()


async def send_zeros(port: int) -> None:
    """Send ten megabytes of zeros, which are no request. Then do nothing."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(bytes(10_000_000))
    await writer.drain()
    await asyncio.Event().wait()


async def send_many_fields(port: int) -> None:
    """Send 120 header fields of eight kilobytes, and no end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    fields = [b"X%d: " % number + b"x" * 8000 + b"\r\n" for number in range(120)]
    writer.write(b"GET / " + HEAD + b"".join(fields))
    await reader.read()


async def send_single_bytes(port: int) -> None:
    """Send a body in chunks of one byte, without an end."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST / " + HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"1\r\nx\r\n" * 1000)
        await writer.drain()


async def ask_for_random_pages(port: int) -> None:
    """Ask for random pages, one after the other, without a pause."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while True:
        after = random.randrange(1 << 62)
        writer.write(b"GET /?after=%d " % after + HEAD + b"\r\n")
        await reader.readuntil(b"</html>\n")


async def open_connections(port: int) -> None:
    """Open a hundred connections a second, and send nothing."""
    opened = []
    while True:
        opened.append(await asyncio.open_connection("127.0.0.1", port))
        await asyncio.sleep(0.01)


@contextmanager
def attacked(port: int, attack: Attack, clients: int) -> Iterator[None]:
    """Attack a port with this many clients, until the end of the context."""
    process = multiprocessing.get_context("spawn").Process(target=run, args=(attack, port, clients))
    process.start()
    try:
        yield
        assert process.is_alive()
    finally:
        process.kill()
        process.join()


def run(attack: Attack, port: int, clients: int) -> None:
    """Run the attack in this process, without an end."""

    async def repeat() -> None:
        while True:  # after each connection that the server has closed, another one
            with suppress(OSError, asyncio.IncompleteReadError):
                await attack(port)

    async def run_clients() -> None:
        await asyncio.gather(*[repeat() for _ in range(clients)])

    asyncio.run(run_clients())
