"""The web server of cct: a page of accounts, and the health that the engine watches.

A request passes `guard` and one handler of the table in `make_app`. If it wants accounts, it waits in `Database.page`.
`answer` makes every response but aiohttp's own: 400 (malformed), 417 (an unknown Expect), 500 (a mistake in a handler).
"""

import asyncio
import gc
import html
import json
import logging
import os
import re
import resource
import signal
import socket
import sys
import time
from base64 import b64encode
from collections.abc import Mapping
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from string import Template

import uvloop
from aiohttp import web
from aiohttp.abc import AbstractAccessLogger
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler

from database import MAX_ID, Database, Page, ReadError
from settings import TIME_FORMAT, Settings, start_log

log = logging.getLogger("cct")


def now() -> str:
    """Return the time in UTC, to the second."""
    return time.strftime(TIME_FORMAT, time.gmtime())


unhealthy = ""  # the health flag: empty while healthy, then the reason; only a restart empties it
failed_probes = 0  # probes that have failed since then, for the page
stopping = False  # since SIGTERM: /ready refuses, everything else still works

CONTAINER = socket.gethostname()
STARTED = now()


# ---------------------------------------------------------------- the page

FILES = Path(__file__).with_name("page")
TEMPLATE = Template((FILES / "page.html").read_text())
STYLE, SCRIPT, ICON = ((FILES / name).read_text() for name in ("page.css", "page.js", "icon.svg"))
ASSETS = (  # inside the page, so that replicas of two versions never mix their files
    f'<link rel="icon" href="data:image/svg+xml;base64,{b64encode(ICON.encode()).decode()}">\n'
    f'<style>{STYLE}</style>\n<script type="module">{SCRIPT}</script>'
)
BUTTON = '<form method="post" action="/make-unhealthy"><button>Make unhealthy</button></form>'


@lru_cache(maxsize=64)
def render_html(page: Page, unhealthy: str, button: str, error: str) -> bytes:
    """Return a page for people. Each value that changes is a parameter, for the cache. `error`: why no accounts."""
    message = caption = ""
    if error:
        message = f"{error} <code>docker compose logs db app</code> tells more."
    elif page.accounts:
        caption = f"Accounts from id {page.accounts[0][0]} to id {page.accounts[-1][0]}"
    elif page.previous is None:  # the first page
        message = "There are no accounts yet. Run the seeder: <code>docker compose up seeder</code>."
    else:
        message = "There are no accounts here: the last one is before this page."
    rows = "\n".join(
        f'<tr><td>{id}</td><th scope="row">{html.escape(name)}</th><td>{html.escape(email)}</td></tr>'
        for id, name, email in page.accounts
    )
    links = (("prev", "Previous", page.previous), ("next", "Next", page.next))
    return TEMPLATE.substitute(
        title="No accounts" if error else "Accounts",
        assets=ASSETS,
        container=html.escape(CONTAINER),
        started=STARTED,
        state="unhealthy" if unhealthy else "healthy",
        health=html.escape(unhealthy or "healthy"),
        button=button,
        message=message,
        caption=caption,
        rows=rows,
        links=" ".join(f'<a rel="{rel}" href="/?after={id}">{name}</a>' for rel, name, id in links if id is not None),
    ).encode()


@lru_cache(maxsize=64)
def render_json(page: Page, unhealthy: str, failed_probes: int, error: str) -> bytes:
    """Return a page for programs; only `error`, if the accounts cannot be read."""
    fields = {
        "container": CONTAINER,
        "started": STARTED,
        "healthy": not unhealthy,
        "health": unhealthy or "healthy",
        "failed_probes": failed_probes,
        "accounts": [{"id": id, "name": name, "email": email} for id, name, email in page.accounts],
        "previous": page.previous,
        "next": page.next,
    }
    return json.dumps({"error": error} if error else fields, ensure_ascii=False).encode() + b"\n"


# ---------------------------------------------------------------- the handlers

SETTINGS = web.AppKey("SETTINGS", Settings)
DATABASE = web.AppKey("DATABASE", Database)
HEADERS = {"Cache-Control": "no-store", "Server": "cct", "X-Content-Type-Options": "nosniff"}
TEXT_HEADERS = HEADERS | {"Content-Type": "text/plain; charset=utf-8"}
JSON_HEADERS = HEADERS | {"Content-Type": "application/json"}
# The browser applies only the style, and runs only the script, that has its hash here.
STYLE_HASH, SCRIPT_HASH = (f"'sha256-{b64encode(sha256(s.encode()).digest()).decode()}'" for s in (STYLE, SCRIPT))
HTML_HEADERS = HEADERS | {
    "Content-Security-Policy": f"default-src 'none'; style-src {STYLE_HASH}; script-src {SCRIPT_HASH}; "
    "connect-src 'self'; img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Content-Type": "text/html; charset=utf-8",
}


def answer(body: bytes, headers: Mapping[str, str], status: int = 200) -> web.Response:
    """Return a response. A 503 says when to try again; while the server is stopping, all close their connection."""
    response = web.Response(body=body, headers=headers, status=status)
    if status == 503:
        response.headers["Retry-After"] = "2"  # seconds
    if stopping:
        response.force_close()  # the client's next request goes where the balancer points now
    return response


def text(sentence: str, status: int = 200, **headers: str) -> web.Response:
    """Return a line of plain text."""
    return answer(f"{sentence}\n".encode(), TEXT_HEADERS | headers, status)


def is_allowed(host: str, names: str) -> bool:
    """Return whether a Host header is an IP address, localhost or one of the names: this stops DNS rebinding."""
    name = re.sub(":[0-9]+$", "", host).lower()
    is_address = re.fullmatch(r"[0-9.]*|\[[0-9a-f:.]+\]", name) is not None  # or nothing: HTTP/1.0 names no host
    return is_address or name in ("localhost", *names.lower().replace(",", " ").split())


@web.middleware
async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Check the name and the body of a request; put a wrong path or method into words."""
    await asyncio.sleep(0)  # let others run: a client that sends without a pause would keep the loop to itself
    names = request.app[SETTINGS].allowed_hosts
    if names != "*" and not is_allowed(request.headers.get("Host", ""), names):
        return text("The server is not known by this name: see ALLOWED_HOSTS.", 421)
    if request.body_exists:
        response = text("No request needs a body here.", 413)
        response.force_close()  # instead of reading it
        return response
    try:
        return await handler(request)
    except web.HTTPNotFound:
        return text("There is nothing here. Try /, /health, /ready or /make-unhealthy.", 404)
    except web.HTTPMethodNotAllowed as error:
        allow = sorted(error.allowed_methods)
        return text(f"{request.method} is not allowed here, but {' and '.join(allow)}.", 405, Allow=", ".join(allow))


NO_PAGE = Page()  # always the same object, so that it is rendered once
SENTENCES = {"no answer": "The database does not answer.", "busy": "Too many pages are asked for at once."}


async def show_accounts(request: web.Request) -> web.Response:
    """Answer with a page of accounts: JSON if the client accepts JSON but not HTML, otherwise HTML."""
    after, *more = request.query.getall("after", ["0"])
    if more or not re.fullmatch("[0-9]{1,19}", after) or int(after) > MAX_ID:
        return text(f"after must be given once, as a whole number from 0 to {MAX_ID}.", 400)
    page, status, error = NO_PAGE, 200, ""
    try:
        page = await request.app[DATABASE].page(int(after))
    except ReadError as failure:
        status = 503
        error = f"{SENTENCES.get(failure.kind, 'The accounts cannot be read.')} Try again in a few seconds."
    accept = request.headers.get("Accept", "")
    if "application/json" in accept and "text/html" not in accept:
        return answer(render_json(page, unhealthy, failed_probes, error), JSON_HEADERS, status)
    button = BUTTON if request.app[SETTINGS].make_unhealthy == "on" else ""
    return answer(render_html(page, unhealthy, button, error), HTML_HEADERS, status)


async def show_health(request: web.Request) -> web.Response:
    """Liveness: the flag. The database is not asked: restarting this process would not repair it."""
    global failed_probes
    if not unhealthy:
        return text("healthy")
    if request.headers.get("User-Agent", "").startswith(("cct-probe", "kube-probe/")):  # probe.py, the kubelet
        failed_probes += 1
    return text(unhealthy, 503)


async def show_readiness(request: web.Request) -> web.Response:
    """Readiness: the flag, and whether the first page can be read."""
    if stopping or unhealthy:
        return text("stopping" if stopping else unhealthy, 503)
    try:
        await request.app[DATABASE].page(0)
    except ReadError as error:
        return text(f"not ready: {error}", 503)
    return text("ready")


def is_foreign(request: web.Request) -> bool:
    """Return whether a browser sent the request on behalf of another site."""
    if site := request.headers.get("Sec-Fetch-Site"):
        return site not in ("same-origin", "none")
    # Over plain http, browsers send Sec-Fetch-Site only to localhost.
    origin = request.headers.get("Origin") or request.headers.get("Referer")  # https://host or https://host/...
    return origin is not None and origin.split("/")[2:3] != [request.host]


async def make_unhealthy(request: web.Request) -> web.Response:
    """Set the health flag."""
    global unhealthy
    if request.app[SETTINGS].make_unhealthy == "off":
        return text("/make-unhealthy is switched off here (MAKE_UNHEALTHY=off).", 403)
    if is_foreign(request):
        return text("/make-unhealthy does not take requests from other sites.", 403)
    if not unhealthy:
        cause = f"{request.method} /make-unhealthy from {request.remote}"
        unhealthy = f"unhealthy since {now()}: {cause}"
        log.warning("made unhealthy by %s", cause)
    if request.method == "POST" and "text/html" in request.headers.get("Accept", ""):
        return text(unhealthy, 303, Location="/")  # the page's form in a browser without JavaScript
    return text(unhealthy)


# ---------------------------------------------------------------- the application


def make_app(settings: Settings) -> web.Application:
    """Return the application. It connects at the first request, so the server starts without a database, too."""
    app = web.Application(middlewares=[guard])
    database = app[DATABASE] = Database(settings)
    app[SETTINGS] = settings
    app.on_cleanup.append(lambda _: database.close())
    app.router.add_get("/", show_accounts)
    app.router.add_get("/health", show_health)
    app.router.add_get("/ready", show_readiness)
    app.router.add_get("/make-unhealthy", make_unhealthy, allow_head=False)
    app.router.add_post("/make-unhealthy", make_unhealthy)
    return app


class AccessLog(AbstractAccessLogger):
    """One line for each request, except a 200 from /health or /ready.

    `write_log` flushes stdout and sets `moment`: doing both for each line would cost a third of the rate.
    """

    moment = now()

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        """Add a line; `time` in seconds."""
        path, status = request.raw_path, response.status
        if status != 200 or path not in ("/health", "/ready"):
            sys.stdout.write(f"{AccessLog.moment} {request.remote} {request.method} {path!a} {status} {time:.4f} s\n")


def listeners(host: str, port: int) -> list[socket.socket]:
    """Return a listening socket and 15 copies; exit with a message if the address cannot be used.

    uvloop accepts one connection a socket in each turn of its loop. With a thousand clients a turn is long: with a
    single socket new clients, and maybe a probe, wait for more than two seconds. 16 were enough.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, dualstack_ipv6=host == "::")
    except OSError as error:
        raise SystemExit(f"Cannot listen on {host}:{port}: {error.strerror}.") from None
    return [listener, *(listener.dup() for _ in range(15))]


async def write_log() -> None:
    """Write the lines of the access log, and set the time of the next ones, four times a second."""
    while True:
        sys.stdout.flush()
        AccessLog.moment = now()
        await asyncio.sleep(0.25)


async def close_oldest_connections(runner: web.AppRunner) -> None:
    """Keep half of the descriptors free, so that a probe always gets one."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2
    while runner.server:
        oldest = runner.server.connections[:-most]
        for connection in oldest:
            connection.close()  # an idle one need not wait for its next request
        # Wait for requests in flight. A connection that is lost meanwhile must not end this task.
        await asyncio.gather(*(connection.shutdown(3.0) for connection in oldest), return_exceptions=True)
        await asyncio.sleep(0.25)


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then for DRAIN seconds without being ready; finish the requests in flight."""
    global stopping
    stop = asyncio.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signal_number, stop.set)
    runner = web.AppRunner(
        make_app(settings),
        access_log_class=AccessLog,
        auto_decompress=False,  # a megabyte of zipped zeros would keep the loop busy for a second
        shutdown_timeout=3.0,  # may be spent twice. Engine and healer kill 10 s after SIGTERM: with DRAIN, allow more
    )
    await runner.setup()
    for listener in listeners(settings.host, settings.port):
        await web.SockSite(runner, listener, backlog=4096).start()
    log.info("listening on %s:%d", settings.host, settings.port)
    chores = [asyncio.create_task(chore) for chore in (write_log(), close_oldest_connections(runner))]
    await stop.wait()
    stopping = True
    log.info("stopping")
    await asyncio.sleep(settings.drain)
    await runner.cleanup()
    for chore in chores:
        chore.cancel()
    log.info("stopped")


def main() -> None:
    """Run the server; exit with a message if it cannot start."""
    settings = Settings.read(os.environ)
    start_log()
    # aiohttp logs a traceback for each malformed request; the access log has the 400 anyway.
    logging.getLogger("aiohttp.server").addFilter(
        lambda record: not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))
    )
    gc.set_threshold(10_000)  # scans a thousand requests in flight less often: 19 % more of them a second
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))  # Docker Engine 29 gives 1,024
    log.info("%s starts", CONTAINER)
    uvloop.run(serve(settings))


if __name__ == "__main__":
    main()
