"""Run one aiohttp application as a process: limits, listeners, signals, drain.

Nothing here knows what the application does. server.py calls `run`.
"""

import asyncio
import gc
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable

import uvloop
from aiohttp import web

from server_log import AccessLog, writer
from settings import Settings

log = logging.getLogger("cct")

# aiohttp waits twice 3 s for requests, and then cancels them. The database and the log may take 1 s
# each. So a stop takes at most 8 s. Docker kills after 10 s.
SHUTDOWN_TIMEOUT = 3.0  # seconds
KEEP_ALIVE = 120.0  # seconds; proxies keep idle connections for less (nginx 60, Traefik 90)
UNREAD_TIMEOUT = 10.0  # seconds until a client that does not read its answer is cut off
LISTENERS = 16
DESCRIPTORS = 8192


def run(app: web.Application, settings: Settings, on_stop: Callable[[], None]) -> None:
    """Serve until SIGTERM or SIGINT; exit with a message if the server cannot start.

    `on_stop` is called when the signal comes. The server then serves on for DRAIN seconds.
    """
    writer.start()
    set_limits()
    # asyncio's own loop with one listener would serve 76 to 89 % as many requests a second.
    loop = uvloop.new_event_loop()
    try:
        loop.run_until_complete(serve(app, settings, on_stop))
    finally:
        writer.stop()
    os._exit(0)  # not sys.exit: Python would wait for its threads, and a DNS lookup may hang there


def set_limits() -> None:
    """Allow many connections, and tune the garbage collector for them."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, DESCRIPTORS), hard))
    gc.set_threshold(10_000)  # fewer scans with a thousand requests in flight: 19 % more a second


async def serve(app: web.Application, settings: Settings, on_stop: Callable[[], None]) -> None:
    """Start, wait for the signal, drain, stop."""
    log.info("%s starts", socket.gethostname())
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    runner = await start(app, settings)
    log.info("listening on %s:%d", settings.host, settings.port)

    limiter = asyncio.create_task(limit_connections(runner))
    await stop.wait()

    on_stop()
    log.info("stopping")
    await asyncio.sleep(settings.drain)
    limiter.cancel()
    await runner.cleanup()
    log.info("stopped")


async def start(app: web.Application, settings: Settings) -> web.AppRunner:
    """Listen; exit with a message if the address cannot be used."""
    runner = web.AppRunner(
        app,
        access_log_class=AccessLog,
        auto_decompress=False,  # a megabyte of zipped zeros would block the loop for a second
        keepalive_timeout=KEEP_ALIVE,  # also for a connection that sends no complete request
        shutdown_timeout=SHUTDOWN_TIMEOUT,
    )
    await runner.setup()
    listener = listen(settings.host, settings.port)
    # uvloop accepts one connection from each socket in a turn of its loop. A thousand clients make
    # a turn long. With one socket, new clients and probes would wait 2 s. 16 sockets are enough.
    listeners = [listener] + [listener.dup() for _ in range(LISTENERS - 1)]
    for copy in listeners:
        await web.SockSite(runner, copy, backlog=4096).start()
    return runner


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; exit with a message if the address cannot be used."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, dualstack_ipv6=host == "::")
    except OSError as error:
        raise SystemExit(f"Cannot listen on {host}:{port}: {error.strerror}.") from None
    if sys.platform == "linux":  # connections inherit this
        milliseconds = int(UNREAD_TIMEOUT * 1000)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
    return listener


async def limit_connections(runner: web.AppRunner) -> None:
    """Keep half of the file descriptors free for probes: close the oldest connections."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2
    while True:
        try:
            connections = runner.server.connections if runner.server else []  # oldest first
            excess = max(len(connections) - most, 0)
            await close_connections(connections[:excess])
        except Exception:
            log.exception("connections cannot be closed")
        await asyncio.sleep(0.25)


async def close_connections(connections: list[web.RequestHandler]) -> None:
    """Close connections; wait at most twice SHUTDOWN_TIMEOUT for requests in flight."""
    for connection in connections:
        connection.close()  # at once, if it is idle
    shutdowns = [connection.shutdown(SHUTDOWN_TIMEOUT) for connection in connections]
    # A client may disconnect meanwhile. This must not end limit_connections.
    await asyncio.gather(*shutdowns, return_exceptions=True)
