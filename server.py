"""The web server of cct: a page of accounts, and a flag that makes the server unhealthy.

`main`, at the end, starts the process. Each request passes `guard`, and then one of the handlers
that `make_app` lists. A handler that needs accounts awaits `Accounts.page`, the only way to the
database.
"""

import asyncio
import html
import json
import os
import re
import resource
import signal
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import asyncmy
from aiohttp import web
from aiohttp.abc import AbstractAccessLogger
from aiohttp.typedefs import Handler
from asyncmy.errors import MySQLError

from settings import Settings

# The flag, and what else the process remembers

unhealthy_reason = ""  # why the server is unhealthy, empty while healthy. Only a restart clears it.
failed_probes = 0  # since the flag was set
last_probe: float | None = None  # time.monotonic() of the last probe, failed or not
stopping = False  # True after SIGTERM: /ready refuses, each response closes its connection
log_lines: list[str] = []  # not written yet: see write_log


def log_line(text: str) -> None:
    """Add a line to the log."""
    log_lines.append(f"{utc_time()} {text}\n")


def utc_time() -> str:
    """Return the current time as text."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())


CONTAINER = socket.gethostname()
STARTED = utc_time()


class State(NamedTuple):
    """What the page shows above the accounts, and the answer of /state."""

    container: str
    started: str
    reason: str  # why the server is unhealthy, empty while healthy
    failed_probes: int
    probe_age: int | None  # seconds since the last probe
    error: str  # why the accounts cannot be read, empty if they can


def current_state(error: str) -> State:
    """Return the state of the server, with this error of the database."""
    age = None if last_probe is None else int(time.monotonic() - last_probe)
    return State(CONTAINER, STARTED, unhealthy_reason, failed_probes, age, error)


# The page

PAGE_SIZE = 50
FILES = Path(__file__).with_name("page")
TEMPLATE = Template((FILES / "page.html").read_text())  # a literal $ is $$ there
ERROR_TEMPLATE = Template((FILES / "error.html").read_text())
BUTTON = (FILES / "button.html").read_text().rstrip()
REFRESH = '<noscript><meta http-equiv="refresh" content="5"></noscript>'


class Account(NamedTuple):
    """One row of the table."""

    id: int
    name: str
    email: str


@dataclass(frozen=True, eq=False)  # compared by identity, which is fast: see make_page
class Page:
    """Up to PAGE_SIZE accounts, or why they cannot be read."""

    after: int = 0  # the accounts have greater ids
    accounts: tuple[Account, ...] = ()
    next: int | None = None  # the `after` of the next page, None for the last page
    error: str = ""  # a sentence for people, empty if the accounts were read
    detail: str = ""  # of the error, for /ready and the log


@lru_cache(maxsize=64)
def render_html(page: Page, state: State, button: str) -> bytes:
    """Return a page for people."""
    note = page.error
    if page.error and not state.reason:
        note += " The server is healthy, so nothing restarts it."
    next_url = f"./?after={html.escape(str(page.next))}"  # an id can be text, as all values can
    return TEMPLATE.substitute(
        refresh=REFRESH if state.reason or page.error else "",
        container=html.escape(state.container),
        started=state.started,
        health="unhealthy" if state.reason else "healthy",
        reason=html.escape(state.reason),
        probe="none yet" if state.probe_age is None else f"{state.probe_age} s ago",
        database="error" if page.error else "answers",
        note=note,
        button=button,
        message=page.error or describe(page),
        rows="\n".join(render_row(account) for account in page.accounts),
        first='<a rel="first" href="./">First</a>' if page.after else "",
        next="" if page.next is None else f'<a rel="next" href="{next_url}">Next</a>',
    ).encode()


def describe(page: Page) -> str:
    """Return which accounts a page shows, or why it shows none."""
    if page.accounts:
        return f"Accounts from id {page.accounts[0].id} to id {page.accounts[-1].id}"
    if page.after:
        return "There are no accounts after this id."
    return "There are no accounts yet. Run the seeder."


def render_row(account: Account) -> str:
    """Return a row of the table."""
    id, name, email = [html.escape(str(value)) for value in account]
    return f'<tr><td>{id}</td><th scope="row">{name}</th><td>{email}</td></tr>'


# The paths

MAX_ID = 2**63 - 1  # BIGINT
MAX_COOKIES = 16_384  # bytes
SETTINGS = web.AppKey("SETTINGS", Settings)
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
        "img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Server": "cct",
    "X-Content-Type-Options": "nosniff",
}
HTML = {"Content-Type": "text/html; charset=utf-8"}


def make_app(settings: Settings) -> web.Application:
    """Return the application. It needs no database to start: the first request connects."""
    app = web.Application(middlewares=[guard])
    app[SETTINGS] = settings
    app[ACCOUNTS] = Accounts(settings)
    app.on_cleanup.append(close_database)
    app.router.add_get("/", show_accounts)
    app.router.add_get("/health", show_health)
    app.router.add_get("/ready", show_readiness)
    app.router.add_get("/state", show_state)
    app.router.add_static("/page", FILES)
    if settings.make_unhealthy == "on":  # HEAD must change nothing
        app.router.add_get("/make-unhealthy", make_unhealthy, allow_head=False)
        app.router.add_post("/make-unhealthy", make_unhealthy)
    return app


@web.middleware
async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse bad requests before a handler sees them. Give people a way back from an error."""
    # A client may send many requests at once (pipelining). This lets other clients go first.
    await asyncio.sleep(0)
    try:
        check_request(request)
        response = await handler(request)
    except web.HTTPException as error:  # an error or a redirect
        render_error(request, error)
        add_headers(error)
        raise
    add_headers(response)
    return response


def check_request(request: web.Request) -> None:
    """Refuse a request that no handler may see."""
    if not is_allowed(request.headers.get("Host", ""), request.app[SETTINGS].allowed_hosts):
        sentence = "The server is not known by this name: see ALLOWED_HOSTS."
        raise web.HTTPMisdirectedRequest(text=sentence)
    if len(request.headers.get("Cookie", "")) > MAX_COOKIES:
        sentence = "The browser sends too many cookies: delete the cookies of this address."
        raise web.HTTPRequestHeaderFieldsTooLarge(text=sentence)
    if request.body_exists:
        raise web.HTTPRequestEntityTooLarge(0, text="No request needs a body here.")


def is_allowed(host: str, names: str) -> bool:
    """Return whether a Host header is an address, localhost or one of the names.

    A hostile site can point its own name here, and so have a browser read pages for it (DNS
    rebinding).
    """
    if names == "*" or not host:  # HTTP/1.0 names no host
        return True
    name = re.sub(":[0-9]*$", "", host).removesuffix(".").lower()
    if name in ("localhost", *names.lower().replace(",", " ").split()):
        return True
    # No other name looks like an address: 192.0.2.1 or [2001:db8::1].
    return re.fullmatch(r"[0-9.]+|\[[0-9a-f:.]+\]", name) is not None


def is_browser(request: web.Request) -> bool:
    """Return whether the client shows HTML."""
    return "text/html" in request.headers.get("Accept", "")


def render_error(request: web.Request, error: web.HTTPException) -> None:
    """Add a newline to an error's text. For a browser, make it a page with a link back."""
    sentence = str(error.text)
    error.text = f"{sentence}\n"
    if is_browser(request):
        # A proxy may serve the page below a path of its own, so links go up, folder by folder.
        home = "../" * (request.path.count("/") - 1) or "./"
        error.text = ERROR_TEMPLATE.substitute(sentence=html.escape(sentence), home=home)
        error.content_type = "text/html"


def add_headers(response: web.StreamResponse) -> None:
    """Add the headers of every response."""
    response.headers.update(HEADERS)
    if response.status == 503:
        response.headers["Retry-After"] = "2"  # seconds
    if stopping:
        response.force_close()  # the client's next request goes to another server


def text_response(sentence: str, status: int = 200) -> web.Response:
    """Return a line of plain text."""
    return web.Response(text=f"{sentence}\n", status=status)


def json_response(fields: dict[str, Any], status: int = 200) -> web.Response:
    """Return a line of JSON."""
    text = json.dumps(fields, ensure_ascii=False, default=str)  # an id can be of any type
    return web.Response(text=f"{text}\n", content_type="application/json", status=status)


async def show_accounts(request: web.Request) -> web.Response:
    """Answer with a page of accounts, or with a 503 that says why they cannot be read.

    The page is JSON if the client accepts JSON, but not HTML.
    """
    page = await request.app[ACCOUNTS].page(parse_after(request))
    state = current_state(page.error)
    status = 503 if page.error else 200
    if "application/json" in request.headers.get("Accept", "") and not is_browser(request):
        accounts = [account._asdict() for account in page.accounts]
        return json_response(state._asdict() | {"accounts": accounts, "next": page.next}, status)
    button = BUTTON if request.app[SETTINGS].make_unhealthy == "on" else ""
    body = render_html(page, state, button)
    return web.Response(body=body, headers=HTML, status=status)


def parse_after(request: web.Request) -> int:
    """Parse `after`; return 0 if it is absent, refuse the request if it is invalid."""
    values = request.query.getall("after", ["0"])
    if len(values) == 1 and re.fullmatch("[0-9]{1,19}", values[0]) and int(values[0]) <= MAX_ID:
        return int(values[0])
    sentence = f"after must be given once, as a whole number from 0 to {MAX_ID}."
    raise web.HTTPBadRequest(text=sentence)


async def show_health(request: web.Request) -> web.Response:
    """Liveness: the flag. A restart would not repair the database, so the database is not asked."""
    global failed_probes, last_probe
    if request.headers.get("User-Agent") == "cct-probe":  # probe.py, and Kubernetes' liveness probe
        last_probe = time.monotonic()
        if unhealthy_reason:
            failed_probes += 1
    if unhealthy_reason:
        return text_response(unhealthy_reason, 503)
    return text_response("healthy")


async def show_readiness(request: web.Request) -> web.Response:
    """Readiness: not stopping, no flag, and the first page can be read."""
    if stopping or unhealthy_reason:
        return text_response(unhealthy_reason or "stopping", 503)
    page = await request.app[ACCOUNTS].page(0)
    if page.error:
        return text_response(f"not ready: {page.error} {page.detail}", 503)
    return text_response("ready")


async def show_state(request: web.Request) -> web.Response:
    """Answer at once with the state. An open page asks every second, or more often in a heal."""
    accounts = request.app[ACCOUNTS]
    accounts.refresh()
    return json_response(current_state(accounts.error)._asdict())


async def make_unhealthy(request: web.Request) -> web.Response:
    """Set the health flag."""
    global unhealthy_reason
    if is_cross_site(request):
        sentence = "/make-unhealthy takes no requests from other sites."
        raise web.HTTPForbidden(text=f"{sentence} A proxy must forward Host, with the port.")
    if "prefetch" in request.headers.get("Sec-Purpose", ""):
        raise web.HTTPForbidden(text="/make-unhealthy takes no requests in advance.")
    if not unhealthy_reason:
        cause = f"{request.method} /make-unhealthy from {request.remote or 'unknown'}"
        unhealthy_reason = f"unhealthy since {utc_time()}: {cause}"
        log_line(f"made unhealthy by {cause}")
    if is_browser(request):
        raise web.HTTPSeeOther("./")  # the page
    return text_response(unhealthy_reason)


def is_cross_site(request: web.Request) -> bool:
    """Return whether a page of another site made the browser send this request."""
    site = request.headers.get("Sec-Fetch-Site")
    if site:
        return site not in ("same-origin", "none")
    # Over plain HTTP, browsers send Sec-Fetch-Site only to localhost. Elsewhere, compare the
    # origin with the host.
    origin = request.headers.get("Origin") or request.headers.get("Referer")
    own = (f"http://{request.host}/", f"https://{request.host}/")
    return origin is not None and not f"{origin}/".startswith(own)


# The accounts

# A range of the primary key, so no query reads more rows than it returns. LEFT bounds the memory
# that a page takes: a table made by hand may hold longer texts.
QUERY = """
SELECT id, LEFT(name, 254), LEFT(email, 254) FROM accounts WHERE id > %s ORDER BY id LIMIT %s
"""
POOL_SIZE = 2  # connections, so at most two queries at once: more were not faster
MAX_IDLE = 60.0  # seconds; networks forget an idle connection after four minutes or more

Rows = tuple[tuple[Any, ...], ...]


class Accounts:
    """The accounts in the database. Requests that wait for the same page share one query."""

    def __init__(self, settings: Settings) -> None:
        self.timeout = settings.db_timeout
        self.pool = asyncmy.Pool(
            minsize=0,
            maxsize=POOL_SIZE,
            pool_recycle=-1,  # off: it would say goodbye to a dead connection, and wait
            autocommit=True,  # each query sees the newest rows
            stmt_cache_size=8,  # prepared statements
            **settings.connect_arguments(),
        )
        # Reads queue here, first in, first out. The pool's own queue is not fair.
        self.slots = asyncio.Semaphore(POOL_SIZE)
        self.queued: dict[int, asyncio.Task[Page]] = {}  # reads whose query has not begun
        self.last_queued = 0.0  # when the last read was queued, on the loop's clock
        self.error = ""  # of the last read, empty if it succeeded

    def page(self, after: int) -> asyncio.Task[Page]:
        """Return a read to await: the accounts after this id, or the error, within DB_TIMEOUT.

        While a read is queued, other requests for the same page join it. When its query begins,
        it leaves the queue (see `read`), and nobody joins it. So a query begins after its requests.
        """
        if after not in self.queued:
            self.last_queued = asyncio.get_running_loop().time()
            self.queued[after] = asyncio.create_task(self.read(after))
        # aiohttp cancels no handler whose client leaves, so no client ends another one's read.
        return self.queued[after]

    def refresh(self) -> None:
        """Read the first page in the background if the last read is older than a second."""
        if asyncio.get_running_loop().time() > self.last_queued + 1:
            self.page(0)

    async def read(self, after: int) -> Page:
        """Wait for a slot, query the database, and return the page or the error."""
        try:
            # The inner timeout is the limit. Python 3.11 can lose it while a connection opens.
            async with asyncio.timeout(self.timeout + 1), asyncio.timeout(self.timeout):
                try:
                    await self.slots.acquire()
                finally:
                    del self.queued[after]  # from here on, nobody joins
                try:
                    page = make_page(after, await self.query(after))
                finally:
                    self.slots.release()
        except (MySQLError, OSError, RuntimeError) as error:
            # OSError: the network, the password file, and TimeoutError.
            # RuntimeError: asyncmy needs TLS for this login.
            page = explain(error)
        self.remember(page)
        return page

    async def query(self, after: int) -> Rows:
        """Return the rows of QUERY, one more than a page if there is a next page."""
        connection = await self.connect()
        try:
            async with connection.cursor() as cursor:
                await cursor.execute(QUERY, (after, PAGE_SIZE + 1))
                return tuple(await cursor.fetchall())
        except BaseException:
            connection.close()  # it may still hold a part of the answer
            raise
        finally:
            self.pool.release(connection)

    async def connect(self) -> asyncmy.Connection:
        """Take a connection from the pool. Drop one that the network may have forgotten."""
        while True:
            connection = await self.pool.acquire()
            if asyncio.get_running_loop().time() < connection.last_usage + MAX_IDLE:
                return connection
            connection.close()
            self.pool.release(connection)

    def remember(self, page: Page) -> None:
        """Remember the error of a read. Log an error of another kind, and the end of errors."""
        if page.error == self.error:
            return
        self.error = page.error
        log_line(f"{page.error} {page.detail}" if page.error else "The accounts can be read again.")


ACCOUNTS = web.AppKey("ACCOUNTS", Accounts)


async def close_database(app: web.Application) -> None:
    """Close the connections, within a second."""
    pool = app[ACCOUNTS].pool
    pool.terminate()
    with suppress(TimeoutError):
        async with asyncio.timeout(1):
            await pool.wait_closed()


# For equal rows, this cache returns the same object. So the cache of render_html finds a page
# without a look at its fifty accounts.
@lru_cache(maxsize=64)
def make_page(after: int, rows: Rows) -> Page:
    """Return the page for the rows of QUERY."""
    accounts = tuple(
        Account(id, as_text(name), as_text(email)) for id, name, email in rows[:PAGE_SIZE]
    )
    return Page(after, accounts, accounts[-1].id if len(rows) > PAGE_SIZE else None)


def as_text(value: object) -> str:
    """Return a value of the table as text. NULL is empty; a table made by hand may hold bytes."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return "" if value is None else str(value)


def explain(error: Exception) -> Page:
    """Return the page for an error of the driver."""
    if isinstance(error, MySQLError) and error.sqlstate:  # sent by the database
        return Page(error="The accounts cannot be read.", detail=str(error.args[-1]))
    detail = str(error) or "There was no answer in time."
    return Page(error="The database does not answer.", detail=detail)


# The process

# At a stop, aiohttp waits for the requests in flight, twice this long, and then cancels them. The
# database may take 1 s. So a stop takes less than 8 s. Docker kills after 10 s.
SHUTDOWN_TIMEOUT = 3.0  # seconds
KEEP_ALIVE = 120.0  # seconds; proxies close idle connections sooner (nginx 60, Traefik 90)
UNREAD_TIMEOUT = 10_000  # milliseconds until a client that does not read its answer is cut off
RECEIVE_BUFFER = 4096  # bytes; a client cannot make the server parse more in one go
DESCRIPTORS = 8192  # open files and connections at most; see limit_connections
QUIET = ("/health", "/ready", "/state", "/page/")  # only their failures are logged


class AccessLog(AbstractAccessLogger):
    """A line for each request. Python's own logging would cost more than the request."""

    def log(self, request: web.BaseRequest, response: web.StreamResponse, seconds: float) -> None:
        """Log a request and how long its answer took."""
        path = request.raw_path
        if response.status < 400 and path.startswith(QUIET):
            return
        who = request.remote or "unknown"
        path = ascii(path[:200])  # in quotes
        log_line(f"{who} {request.method} {path} {response.status} {seconds:.4f} s")


async def write_log() -> None:
    """Write the log four times a second, until cancelled."""
    while True:
        await asyncio.sleep(0.25)
        write_lines()


def write_lines() -> None:
    """Write the waiting lines to stdout. Lines that a full disk does not take are lost."""
    text = "".join(log_lines)
    log_lines.clear()
    with suppress(OSError):
        os.write(sys.stdout.fileno(), text.encode(errors="backslashreplace"))


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; exit with a message if the address cannot be used."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, dualstack_ipv6=host == "::")
    except OSError as error:
        raise SystemExit(f"Cannot listen on {host}:{port}: {error.strerror}.") from None
    # Connections inherit these two.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    if sys.platform == "linux":
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_TIMEOUT)
    return listener


async def limit_connections(runner: web.AppRunner) -> None:
    """Keep half of the file descriptors free for probes: close the oldest connections."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = min(hard, DESCRIPTORS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    while True:
        connections = runner.server.connections if runner.server else []  # oldest first
        excess = max(len(connections) - allowed // 2, 0)
        for connection in connections[:excess]:
            connection.force_close()
        await asyncio.sleep(0.25)


async def serve(settings: Settings) -> None:
    """Start, wait for SIGTERM or SIGINT, serve on for DRAIN seconds, stop."""
    global stopping
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    log_line(f"{CONTAINER} starts")
    runner = web.AppRunner(
        make_app(settings),
        access_log_class=AccessLog,
        auto_decompress=False,  # a megabyte of zipped zeros would block the loop for a second
        keepalive_timeout=KEEP_ALIVE,  # also for a connection that sends no complete request
        lingering_time=0,  # the rest of a refused body is not read
        max_field_size=2 * MAX_COOKIES,  # so that check_request can name the cookies
        max_headers=32,
        shutdown_timeout=SHUTDOWN_TIMEOUT,
    )
    await runner.setup()
    await web.SockSite(runner, listen(settings.host, settings.port), backlog=4096).start()
    log_line(f"listening on {settings.host}:{settings.port}")
    helpers = [asyncio.create_task(write_log()), asyncio.create_task(limit_connections(runner))]

    await stop.wait()
    stopping = True
    log_line("stopping")
    await asyncio.sleep(settings.drain)  # clients still come: they do not know yet
    await runner.cleanup()
    for helper in helpers:
        helper.cancel()
    log_line("stopped")


def main() -> None:
    """Run the server until SIGTERM or SIGINT; exit with a message if it cannot start."""
    settings = Settings(os.environ)
    try:
        asyncio.run(serve(settings))
    finally:
        write_lines()


if __name__ == "__main__":
    main()
