"""Attacks: clients that harm the server, in a process of their own."""

import asyncio
import multiprocessing
import random
import zlib
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

Attack = Callable[[int], Coroutine[Any, Any, None]]  # over one connection to a port

HEAD = b"HTTP/1.1\r\nHost: localhost\r\n"
NOTHING = b"GET /nothing " + HEAD + b"\r\n"
PAGE = b"GET /?after=1 " + HEAD + b"Accept: text/html\r\n\r\n"
LAST_PAGE = PAGE[:-2] + b"Connection: close\r\n\r\n"


async def send_without_pause(port: int) -> None:
    """Send requests, and read no answer, until the server closes the connection."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    while True:
        writer.write(NOTHING * 1000)
        await writer.drain()


async def leave_a_backlog(port: int) -> None:
    """Send fifty thousand requests at once. Read until the server closes; then do nothing."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(NOTHING * 50_000)
    writer.write_eof()
    with suppress(OSError):
        while await reader.read(1 << 20):
            pass
    await asyncio.Event().wait()


async def pipeline(port: int) -> None:
    """Send nine requests at once, again and again. The server works on one, and eight wait."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while True:
        writer.write(NOTHING * 9)
        for _ in range(9):
            await reader.readuntil(b"/ready.\n")


async def send_bomb(port: int) -> None:
    """Send a gigabyte of zeros, zipped to a megabyte."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = make_bomb()
    fields = b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body)
    writer.write(b"POST / " + HEAD + fields + body)
    await reader.read()
    writer.close()


@cache
def make_bomb() -> bytes:
    """Return a gigabyte of zeros as a gzip."""
    packer = zlib.compressobj(9, wbits=31)
    megabyte = bytes(1 << 20)
    first = packer.compress(megabyte) + packer.flush(zlib.Z_FULL_FLUSH)
    other = packer.compress(megabyte) + packer.flush(zlib.Z_FULL_FLUSH)
    return first + 1023 * other + packer.flush()


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
    asyncio.run(run_clients(attack, port, clients))


async def run_clients(attack: Attack, port: int, clients: int) -> None:
    """Run all clients at once."""
    await asyncio.gather(*[repeat(attack, port) for _ in range(clients)])


async def repeat(attack: Attack, port: int) -> None:
    """Attack a port. Connect again after each connection that the server has closed."""
    while True:
        with suppress(OSError, asyncio.IncompleteReadError):
            await attack(port)
