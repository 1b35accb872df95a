"""Clients that mean harm, in a process of their own."""

import asyncio
import multiprocessing
import random
import zlib
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

Attack = Callable[
    [int], Coroutine[Any, Any, None]
]  # what a client does, over and over again, to a port
HEAD = b"HTTP/1.1\r\nHost: localhost\r\n"


async def pipeline(port: int) -> None:
    """Send requests without a pause, and read the answers: ten thousand are always under way."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    request = b"GET /nothing " + HEAD + b"\r\n"
    writer.write(request * 10_000)
    while answers := await reader.read(1 << 20):
        writer.write(request * answers.count(b"HTTP/1.1 "))


@cache
def bomb() -> bytes:
    """Return a gigabyte of zeros as a gzip of a megabyte."""
    packer = zlib.compressobj(9, wbits=31)
    head, block = (
        packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2)
    )
    return head + 1023 * block + packer.flush()


async def send_bomb(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = bomb()
    writer.write(
        b"POST / "
        + HEAD
        + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body)
        + body
    )
    await reader.read()
    writer.close()


async def ask_for_random_pages(port: int) -> None:
    """Ask for a random page, and for the next as soon as it has come."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while True:
        writer.write(b"GET /?after=%d " % random.randrange(1 << 62) + HEAD + b"\r\n")
        await reader.readuntil(b"</html>\n")


async def open_connections(port: int) -> None:
    """Open a hundred connections a second, and send nothing."""
    opened = []
    while True:
        opened.append(await asyncio.open_connection("127.0.0.1", port))
        await asyncio.sleep(0.01)


def run(attack: Attack, port: int, clients: int) -> None:
    async def client() -> None:
        while True:
            with suppress(OSError, asyncio.IncompleteReadError):
                await attack(port)

    async def main() -> None:
        await asyncio.gather(*(client() for _ in range(clients)))

    asyncio.run(main())


@contextmanager
def attacked(port: int, attack: Attack, clients: int) -> Iterator[None]:
    """Give a context in which clients attack a port."""
    process = multiprocessing.get_context("spawn").Process(target=run, args=(attack, port, clients))
    process.start()
    try:
        yield
        assert process.is_alive()
    finally:
        process.kill()
        process.join()
