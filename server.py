"""The web server of cct: a page of accounts, and the health that the engine watches.

A request passes `guard` and one handler of the table in `make_app`. If it wants accounts, it waits in `Database.page`.
`answer` makes every response. In reading order: the health flag, the page, the handlers, the application.
"""

import asyncio
import gc
import html
import json
import logging
import os
import resource
import signal
import socket
import sys
import time
from base64 import b64encode
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from hashlib import sha256
from ipaddress import ip_address
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


# ---------------------------------------------------------------- the health flag

unhealthy = ""  # the flag: why it is lowered, empty while it is up; only a restart raises it
failed_probes = 0  # probes that have failed since, for the page
stopping = False  # SIGTERM has come: not ready, all else is still served

CONTAINER = socket.gethostname()
STARTED = now()


# ---------------------------------------------------------------- the page

FILES = Path(__file__).with_name("page")
STYLE, SCRIPT, ICON = (FILES.joinpath(name).read_text() for name in ("page.css", "page.js", "icon.svg"))
BUTTON = '<form method="post" action="/make-unhealthy"><button>Make unhealthy</button></form>'


def make_template() -> Template:
    """Return page.html with style, script and icon inside: replicas of two versions never mix their files."""
    page = FILES.joinpath("page.html").read_text()
    for tag, content in (
        ('href="icon.svg"', f'href="data:image/svg+xml;base64,{b64encode(ICON.encode()).decode()}"'),
        ('<link rel="stylesheet" href="page.css">', f"<style>{STYLE}</style>"),
        ('<script type="module" src="page.js"></script>', f'<script type="module">{SCRIPT}</script>'),
    ):
        page = page.replace(tag, content.replace("$", "$$"))
    return Template(page)


def digest(text: str) -> str:
    """Return the hash by which a Content-Security-Policy allows an inline style or script."""
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


TEMPLATE = make_template()
HEADERS = {"Cache-Control": "no-store", "Server": "cct", "X-Content-Type-Options": "nosniff"}
TEXT_HEADERS = HEADERS | {"Content-Type": "text/plain; charset=utf-8"}
JSON_HEADERS = HEADERS | {"Content-Type": "application/json", "Vary": "Accept"}
HTML_HEADERS = HEADERS | {
    "Content-Security-Policy": f"default-src 'none'; style-src {digest(STYLE)}; script-src {digest(SCRIPT)}; "
    "connect-src 'self'; img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Content-Type": "text/html; charset=utf-8",
    "Vary": "Accept",
}


def render(title: str, health: str, **parts: str) -> bytes:
    """Return page.html with the parts that are given, as HTML; the others are empty and not shown."""
    empty = dict.fromkeys(("button", "message", "caption", "rows", "links"), "")
    return TEMPLATE.substitute(
        empty | parts,
        title=title,
        container=html.escape(CONTAINER),
        started=STARTED,
        state="healthy" if health == "healthy" else "unhealthy",
        health=html.escape(health),
    ).encode()


@lru_cache(maxsize=64)
def render_html(page: Page, health: str, button: str) -> bytes:
    """Return a page for people."""
    message = caption = ""
    if page.accounts:
        caption = f"{len(page.accounts)} accounts from id {page.accounts[0][0]}"
    elif page.previous is None:
        message = "There are no accounts yet. Run the seeder: <code>docker compose up seeder</code>."
    else:
        message = "There are no accounts here: the last one is before this page."
    rows = "\n".join(
        f'<tr><td>{id}</td><th scope="row">{html.escape(name)}</th><td>{html.escape(email)}</td></tr>'
        for id, name, email in page.accounts
    )
    links = (("prev", "Previous", page.previous), ("next", "Next", page.next))
    anchors = " ".join(f'<a rel="{rel}" href="/?after={id}">{text}</a>' for rel, text, id in links if id is not None)
    return render("Accounts", health, button=button, message=message, caption=caption, rows=rows, links=anchors)


@lru_cache(maxsize=8)  # a thousand clients may get it at once
def render_failure(sentence: str, health: str, button: str) -> bytes:
    """Return the page that is shown if the accounts cannot be read."""
    message = f"{sentence} <code>docker compose logs db app</code> tells more."
    return render("No accounts", health, button=button, message=message)


@lru_cache(maxsize=64)
def render_json(page: Page, health: str, failed_probes: int) -> bytes:
    """Return a page for programs."""
    fields = {
        "container": CONTAINER,
        "started": STARTED,
        "healthy": health == "healthy",
        "health": health,
        "failed_probes": failed_probes,
        "accounts": [{"id": id, "name": name, "email": email} for id, name, email in page.accounts],
        "previous": page.previous,
        "next": page.next,
    }
    return json.dumps(fields, ensure_ascii=False).encode() + b"\n"


# ---------------------------------------------------------------- the handlers

SETTINGS = web.AppKey("SETTINGS", Settings)
DATABASE = web.AppKey("DATABASE", Database)
RETRY_AFTER = {"Retry-After": "2"}
PUBLIC = {"no answer": "The database does not answer.", "busy": "Too many pages are asked for at once."}
PROBES = ("cct-probe", "kube-probe/")  # how the User-Agent of probe.py and of the kubelet begins


def answer(body: bytes, headers: Mapping[str, str], status: int = 200) -> web.Response:
    """Return a response; while the server is stopping, one that closes its connection."""
    response = web.Response(body=body, headers=headers, status=status)
    if stopping:
        response.force_close()  # the client's next request goes where the balancer points now
    return response


def text(sentence: str, status: int = 200, **headers: str) -> web.Response:
    """Return a line of plain text."""
    return answer(f"{sentence}\n".encode(), TEXT_HEADERS | headers, status)


def is_allowed(host: str, names: str) -> bool:
    """Return whether a Host header is an IP address, localhost or one of the names.

    This stops DNS rebinding: a foreign site could point its own name here, and browsers would let its scripts read us.
    """
    name, _, port = host.rpartition(":")
    name = name if port.isdigit() else host
    with suppress(ValueError):
        ip_address(name.strip("[]"))
        return True
    return name.lower() in ("", "localhost", *names.lower().replace(",", " ").split())


@web.middleware
async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse what no handler should see."""
    await asyncio.sleep(0)  # let others run: a client that sends without a pause would keep the loop to itself
    names = request.app[SETTINGS].allowed_hosts
    if names != "*" and not is_allowed(request.headers.get("Host", ""), names):
        return text("The server is not known by this name: see ALLOWED_HOSTS.", 421)
    if request.body_exists:  # no handler reads one
        response = text("No request needs a body here.", 413)
        response.force_close()
        return response
    try:
        return await handler(request)
    except web.HTTPNotFound:
        return text("There is nothing here. Try /, /health, /ready or /make-unhealthy.", 404)
    except web.HTTPMethodNotAllowed as error:
        allow = sorted(error.allowed_methods)
        return text(f"{request.method} is not allowed here, but {' and '.join(allow)}.", 405, Allow=", ".join(allow))


def parse_after(request: web.Request) -> int | None:
    """Parse `after`; return 0 if it is absent, None if it is invalid."""
    if not request.query_string:
        return 0
    values = request.query.getall("after", ["0"])
    value = values[0]
    if len(values) == 1 and len(value) <= 19 and value.isascii() and value.isdigit() and int(value) <= MAX_ID:
        return int(value)
    return None


async def show_accounts(request: web.Request) -> web.Response:
    """Answer with a page of accounts: JSON for a client that accepts it and no HTML, HTML for all others."""
    accept = request.headers.get("Accept", "")
    as_json = "application/json" in accept and "text/html" not in accept
    button = BUTTON if request.app[SETTINGS].make_unhealthy == "on" else ""
    if (after := parse_after(request)) is None:
        return text(f"after must be given once, as a whole number from 0 to {MAX_ID}.", 400)
    try:
        page = await request.app[DATABASE].page(after)
    except ReadError as error:
        sentence = f"{PUBLIC.get(error.kind, 'The accounts cannot be read.')} Try again in a few seconds."
        if as_json:
            return answer(json.dumps({"error": sentence}).encode() + b"\n", JSON_HEADERS | RETRY_AFTER, 503)
        return answer(render_failure(sentence, unhealthy or "healthy", button), HTML_HEADERS | RETRY_AFTER, 503)
    if as_json:
        return answer(render_json(page, unhealthy or "healthy", failed_probes), JSON_HEADERS)
    return answer(render_html(page, unhealthy or "healthy", button), HTML_HEADERS)


async def show_health(request: web.Request) -> web.Response:
    """Liveness: the flag. The database is not asked: restarting this process would not repair it."""
    global failed_probes
    if not unhealthy:
        return text("healthy")
    if request.headers.get("User-Agent", "").startswith(PROBES):
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
    origin = request.headers.get("Origin") or request.headers.get("Referer")
    return origin is not None and origin.split("/")[2:3] != [request.host]


async def make_unhealthy(request: web.Request) -> web.Response:
    """Lower the flag."""
    global unhealthy
    if request.app[SETTINGS].make_unhealthy == "off":
        return text("/make-unhealthy is switched off here (MAKE_UNHEALTHY=off).", 403)
    if is_foreign(request):
        return text("/make-unhealthy does not take requests from other sites.", 403)
    if not unhealthy:
        cause = f"{request.method} /make-unhealthy from {request.remote}"
        unhealthy = f"unhealthy since {now()}: {cause}"
        log.warning("flag lowered by %s", cause)
    if request.method == "POST" and "text/html" in request.headers.get("Accept", ""):
        return text(unhealthy, 303, Location="/")
    return text(unhealthy)


# ---------------------------------------------------------------- the application


def make_app(settings: Settings) -> web.Application:
    """Return the application. It connects at the first request, so the server starts without a database, too."""
    app = web.Application(middlewares=[guard])
    database = app[DATABASE] = Database(settings)
    app[SETTINGS] = settings
    app.on_cleanup.append(lambda _: database.close())
    app.add_routes(
        [
            web.get("/", show_accounts),
            web.get("/health", show_health),
            web.get("/ready", show_readiness),
            web.get("/make-unhealthy", make_unhealthy, allow_head=False),
            web.post("/make-unhealthy", make_unhealthy),
        ]
    )
    return app


class AccessLog(AbstractAccessLogger):
    """One line for each request except successful probes.

    The lines stay in the buffer of stdout until `housekeeping` writes it and updates the time. To do both for each line
    would cost a third of the rate.
    """

    moment = now()

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        """Add a line; `time` in seconds."""
        path, status = request.raw_path, response.status
        if status != 200 or path not in ("/health", "/ready"):
            sys.stdout.write(f"{AccessLog.moment} {request.remote} {request.method} {path!a} {status} {time:.4f} s\n")


def is_not_malformed_request(record: logging.LogRecord) -> bool:
    """Return False for a malformed request: aiohttp logs a traceback, and the access log has its 400 already."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


def listeners(host: str, port: int) -> list[socket.socket]:
    """Return a listening socket and 15 copies; exit with a message if the address cannot be used.

    uvloop accepts one connection for each in a turn of its loop. With a thousand clients a turn is long: with one alone
    some of them, and maybe a probe, wait for more than two seconds.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, dualstack_ipv6=host == "::")
    except OSError as error:
        raise SystemExit(f"Cannot listen on {host}:{port}: {error.strerror}.") from None
    return [listener, *(listener.dup() for _ in range(15))]


def open_files() -> int:
    """Return how many files may be open, 8,192 if the system allows that many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)  # in Docker Engine 29: soft 1,024, hard far more
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 8192)), hard))
    return min(hard, 8192)


async def housekeeping(runner: web.AppRunner, most: int) -> None:
    """Four times a second write the access log, and close the oldest of more than `most` connections."""
    while server := runner.server:
        sys.stdout.flush()
        AccessLog.moment = now()
        oldest = server.connections[:-most]
        for connection in oldest:
            connection.close()
        # Requests in flight are finished; a connection that is lost meanwhile must not end this task.
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
        shutdown_timeout=3.0,  # spent twice at worst, and the healer kills after 10 s
    )
    await runner.setup()
    for listener in listeners(settings.host, settings.port):
        await web.SockSite(runner, listener, backlog=4096).start()
    log.info("listening on %s:%d", settings.host, settings.port)
    house = asyncio.create_task(housekeeping(runner, open_files() // 2))  # a probe needs a descriptor, too
    await stop.wait()
    stopping = True
    log.info("stopping")
    await asyncio.sleep(settings.drain)
    await runner.cleanup()
    house.cancel()
    log.info("stopped")


def main() -> None:
    """Run the server; exit with a message if it cannot start."""
    settings = Settings.read(os.environ)
    start_log()
    gc.set_threshold(10_000)  # does not scan a thousand requests in flight: a sixth more of them a second
    logging.getLogger("aiohttp.server").addFilter(is_not_malformed_request)
    log.info("%s starts", CONTAINER)
    uvloop.run(serve(settings))


if __name__ == "__main__":
    main()
