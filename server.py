"""The account page of cct, a web service that heals itself.

In reading order: settings, the health flag, the database, the page, the handlers, the application.
"""

import asyncio
import functools
import gc
import html
import json
import logging
import os
import resource
import signal
import socket
import ssl
import sys
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple

import asyncmy
import uvloop
from aiohttp import web, web_response
from aiohttp.abc import AbstractAccessLogger
from aiohttp.http_exceptions import HttpProcessingError
from asyncmy.errors import MySQLError

log = logging.getLogger("cct")


# ---------------------------------------------------------------- settings

Env = Mapping[str, str]
Number = TypeVar("Number", int, float)


def number(env: Env, name: str, default: Number, low: Number, high: Number) -> Number:
    """Read a number of the default's type; SystemExit with a sentence where it is none or out of range."""
    text = env.get(name) or str(default)
    with suppress(ValueError):
        value = type(default)(text)
        if low <= value <= high:
            return value
    kind = "a whole number" if isinstance(default, int) else "a number"
    raise SystemExit(f"{name} must be {kind} from {low} to {high}, not {text!r}.")


def choice(env: Env, name: str, *options: str) -> str:
    """Read one of the options, the first where it is not set; SystemExit with a sentence where it is another."""
    text = env.get(name) or options[0]
    if text in options:
        return text
    raise SystemExit(f"{name} must be {' or '.join(options)}, not {text!r}.")


@dataclass(frozen=True)
class DatabaseSettings:
    """Where the database is and how to log in to it; `timeout` in seconds."""

    host: str
    port: int
    name: str
    user: str
    password: str
    password_file: str
    tls: str
    pool_size: int
    timeout: float

    @classmethod
    def read(cls, env: Env) -> "DatabaseSettings":
        """Read the DB_* settings; SystemExit with a sentence that names the bad one."""
        settings = cls(
            host=env.get("DB_HOST") or "db",
            port=number(env, "DB_PORT", 3306, 1, 65535),
            name=env.get("DB_NAME") or "cct",
            user=env.get("DB_USER", ""),
            password=env.get("DB_PASSWORD", ""),
            password_file=env.get("DB_PASSWORD_FILE", ""),
            tls=choice(env, "DB_TLS", "required", "verify-identity", "disabled"),
            pool_size=number(env, "DB_POOL_SIZE", 4, 1, 1000),
            timeout=number(env, "DB_TIMEOUT", 2.0, 0.1, 60.0),
        )
        if not settings.user:
            raise SystemExit("DB_USER must name the database user.")
        if bool(settings.password) == bool(settings.password_file):
            raise SystemExit("Exactly one of DB_PASSWORD and DB_PASSWORD_FILE must be set.")
        try:
            settings.current_password()
        except OSError as error:
            raise SystemExit(f"DB_PASSWORD_FILE cannot be read: {error}.") from None
        return settings

    def current_password(self) -> bytes:
        """Return the password; a file is read anew for each connection, so that a rotated one needs no restart."""
        if self.password_file:
            return Path(self.password_file).read_bytes().rstrip(b"\r\n")
        return self.password.encode()

    def tls_context(self) -> ssl.SSLContext | None:
        """Return what encrypts the connection, as DB_TLS says."""
        if self.tls == "disabled":
            return None
        if self.tls == "verify-identity":
            return ssl.create_default_context()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # MySQL's own certificate is self-signed: do not verify it
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context

    def connection(self) -> dict[str, Any]:
        """Return the arguments of asyncmy.connect."""
        return {
            "host": self.host,
            "port": self.port,
            "database": self.name,
            "user": self.user,
            "password_creator": self.current_password,
            "ssl": self.tls_context(),
        }


@dataclass(frozen=True)
class Settings:
    """What the server reads from its environment; `drain` in seconds."""

    host: str
    port: int
    drain: float
    make_unhealthy: bool
    database: DatabaseSettings

    @classmethod
    def read(cls, env: Env) -> "Settings":
        """Read all settings; SystemExit with a sentence that names the bad one."""
        return cls(
            host=env.get("HOST") or "0.0.0.0",
            port=number(env, "PORT", 80, 1, 65535),
            drain=number(env, "DRAIN", 0.0, 0.0, 300.0),
            make_unhealthy=choice(env, "MAKE_UNHEALTHY", "on", "off") == "on",
            database=DatabaseSettings.read(env),
        )


# ---------------------------------------------------------------- the health flag

TIME_FORMAT = "%Y-%m-%d %H:%M:%S UTC"


def now() -> str:
    """Return the time, to the second, in UTC."""
    return time.strftime(TIME_FORMAT, time.gmtime())


CONTAINER = socket.gethostname()
STARTED = now()

healthy = True  # only a restart raises it again
health = "healthy"  # the flag in words
stopping = False  # no longer ready, but still serving until balancers know
failed_probes = 0  # answers of /health since it was lowered


# ---------------------------------------------------------------- the database

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")


class DatabaseLost(Exception):
    """The database did not answer, or not in time, or not with what was asked for."""


class Database:
    """A pool of connections, who waits for what they bring, and the knowledge whether the database was lost."""

    def __init__(self, settings: DatabaseSettings) -> None:
        self.timeout = settings.timeout
        self.pool = asyncmy.Pool(
            0,
            settings.pool_size,
            autocommit=True,
            # Python 3.11 may lose the cancellation of a connection that is just made: this timeout ends that one.
            read_timeout=self.timeout,
            stmt_cache_size=8,  # prepared statements halve the work of a query
            **settings.connection(),
        )
        self.lost_at: float | None = None
        self.waiting: dict[Any, tuple[asyncio.Future[Any], float]] = {}  # a key's next call: its result and deadline
        self.working: dict[Any, asyncio.Task[None]] = {}  # who makes a key's calls

    async def query(self, sql: str, *parameters: int) -> tuple[tuple[Any, ...], ...]:
        """Return the rows of a query."""
        connection = await self.pool.acquire()
        try:
            async with connection.cursor() as cursor:
                await cursor.execute(sql, parameters)
                return tuple(await cursor.fetchall())
        finally:
            self.pool.release(connection)

    async def shared(self, read: Callable[[*Arguments], Awaitable[T]], *arguments: *Arguments) -> T:
        """Return what `read` returns, one call for all who wait together; raise DatabaseLost where it fails.

        A request joins only a call that starts after it came in, so no answer is older than its request; and
        however many clients there are, one call with these arguments runs and one waits. Who joins shares the
        deadline of the first, too.
        """
        key = read, arguments
        if key not in self.waiting:
            loop = asyncio.get_running_loop()
            self.waiting[key] = loop.create_future(), loop.time() + self.timeout
            if key not in self.working:
                self.working[key] = loop.create_task(self.work(key))
        result: T = await self.waiting[key][0]  # nobody cancels it: aiohttp lets a handler end when its client hangs up
        return result

    async def work(self, key: Any) -> None:
        """Make one call after the other, until nobody waits."""
        read, arguments = key
        while key in self.waiting:
            await asyncio.sleep(0)  # first answer those who waited for the last one, and let in who has come
            future, deadline = self.waiting.pop(key)
            with suppress(asyncio.InvalidStateError):  # the end of the process cancels the future
                try:
                    future.set_result(await self.in_time(read(*arguments), deadline))
                except BaseException as error:  # a stray cancellation, too: it must not leave those who wait
                    future.set_exception(error)
        del self.working[key]

    async def in_time(self, reading: Awaitable[T], deadline: float) -> T:
        """Return what is read by a time of the loop; raise DatabaseLost where that takes longer or fails."""
        try:
            async with asyncio.timeout_at(deadline):
                result = await reading
        except (MySQLError, OSError, RuntimeError) as error:  # RuntimeError: MySQL's login without TLS
            late = f"no answer within {self.timeout:g} s"
            reason = late if isinstance(error, TimeoutError) else [repr(error), *error.args][-1]
            if self.lost_at is None:
                self.lost_at = time.monotonic()
                log.error("database lost: %s", reason)
            raise DatabaseLost(reason) from error
        if self.lost_at is not None:
            log.info("database found again after %.1f s", time.monotonic() - self.lost_at)
            self.lost_at = None
            gc.collect()  # a lost connection and its prepared statements are a cycle
        return result

    async def close(self) -> None:
        """Close the connections; one that hangs is left to the end of the process."""
        self.pool.terminate()
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                await self.pool.wait_closed()


# ---------------------------------------------------------------- the page

PAGE_SIZE = 50
MAX_ID = 2**63 - 1  # BIGINT

STYLE = """
:root { color-scheme: light dark; --line: light-dark(#d0d7de, #3d444d); --dim: light-dark(#59636e, #9198a1) }
:root { color: CanvasText; background: Canvas; font: 1rem/1.5 system-ui, sans-serif }
body { max-width: 56rem; margin: auto; padding: 1rem; overflow-wrap: anywhere }
header { border: 1px solid var(--line); border-radius: .75rem; padding: 1rem }
dl, nav { display: flex; flex-wrap: wrap; gap: .5rem 2.5rem; margin: 0 0 1rem }
dt, caption, td:first-child { color: var(--dim) }
dd { margin: 0; font-weight: 600 }
button { font: inherit; padding: .5rem 1rem; border: 1px solid var(--line); border-radius: .5rem }
ol { margin: 1rem 0 0; padding: 0; list-style: none; font-variant-numeric: tabular-nums }
ol:empty { display: none }
table { width: 100%; border-collapse: collapse }
caption { text-align: start; padding: 1rem 0 .5rem }
th, td { text-align: start; vertical-align: top; padding: .375rem .5rem .375rem 0 }
tr { border-bottom: 1px solid var(--line) }
tbody th { font-weight: normal }
nav { margin: 1rem 0 }
a { color: light-dark(#0550ae, #79c0ff) }
.healthy { color: light-dark(#116329, #7ee787) }
.unhealthy { color: light-dark(#a40e26, #ffa198) }
"""

# Tells the heal from what the server answers; it remembers across a reload and rests while nobody looks.
SCRIPT = """
const form = document.querySelector("form"), list = document.querySelector("ol")
const [container, started, health] = document.querySelectorAll("dd")
let heal = JSON.parse(sessionStorage.getItem("heal")), watching = false, leaving = false

const seconds = at => ((at - heal.began) / 1000).toFixed(1)

function show({text, at}) {
  const item = document.createElement("li")
  item.textContent = `${seconds(at)} s: ${text}`
  list.append(item)
}

function observe(text) {
  if (heal.steps.at(-1)?.text === text) return
  heal.steps.push({text, at: Date.now()})
  sessionStorage.setItem("heal", JSON.stringify(heal))
  show(heal.steps.at(-1))
}

function begin(text) {
  list.replaceChildren()
  heal = {began: Date.now(), container: container.textContent, probes: 0, steps: []}
  observe(text)
  watch()
}

function end(page) {
  const how = page.container === heal.container ? "healthy again, healed" : `${page.container} answers, healthy,`
  observe(`${how} in ${seconds(Date.now())} s`)
  sessionStorage.removeItem("heal")
  heal = null
  container.textContent = page.container
  started.textContent = page.started
  health.textContent = health.className = page.health
  form.firstElementChild.disabled = false
}

async function look() {
  let response, page
  try {
    response = await fetch("/", {headers: {Accept: "application/json"}, signal: AbortSignal.timeout(3000)})
    page = await response.json()
  } catch {
    return leaving || observe(heal.probes < 3 ? "no answer" : "restarting (no answer)")
  }
  if (!response.ok) return observe(page.error)
  if (page.healthy) return end(page)
  health.textContent = page.health
  health.className = "unhealthy"
  while (heal.probes < page.failed_probes) observe(`probe ${++heal.probes} failed`)
}

async function watch() {
  if (watching) return
  watching = form.firstElementChild.disabled = true
  while (heal && !document.hidden) {
    await look()
    await new Promise(resolve => setTimeout(resolve, 250))
  }
  watching = false
}

form.addEventListener("submit", async event => {
  event.preventDefault()
  const response = await fetch(form.action, {method: "POST"})
  if (response.ok) begin("flag lowered")
})
document.addEventListener("visibilitychange", watch)
addEventListener("beforeunload", () => leaving = true) // which ends a request, and says nothing of the server
if (heal) { heal.steps.forEach(show); watch() }
else if (health.className === "unhealthy") begin("found unhealthy")
"""

ICON = """
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">
<path fill="#2da44e" d="M6 1h4v5h5v4h-5v5H6v-5H1V6h5z"/>
</svg>
"""


def digest(text: str) -> str:
    """Return the source that lets a Content-Security-Policy admit an inline element."""
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


COMMON_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
TEXT_HEADERS = COMMON_HEADERS | {"Content-Type": "text/plain; charset=utf-8"}
PAGE_HEADERS = COMMON_HEADERS | {
    "Content-Security-Policy": f"default-src 'none'; style-src {digest(STYLE)}; script-src {digest(SCRIPT)}; "
    "connect-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Vary": "Accept",
}
HTML_HEADERS = PAGE_HEADERS | {"Content-Type": "text/html; charset=utf-8"}
JSON_HEADERS = PAGE_HEADERS | {"Content-Type": "application/json"}


def render_document(title: str, body: str, script: str = "") -> bytes:
    """Return a whole HTML page; title, body and script are HTML already."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<link rel="icon" href="/favicon.ico">
<style>{STYLE}</style>
{script}</head>
<body>
<main>
<h1>{title}</h1>
{body}
</main>
</body>
</html>
""".encode()


@dataclass(frozen=True)
class Page:
    """Accounts as (id, name, email), the `after` of the pages around them, None where there is none, and the health."""

    accounts: tuple[tuple[int, str, str], ...]
    previous: int | None
    next: int | None
    healthy: bool
    health: str
    failed_probes: int
    make_unhealthy: bool


async def read_page(app: web.Application, after: int) -> Page:
    """Read the first accounts whose id is above `after`; the cost does not grow with the table."""
    rows = await app[DATABASE].query(  # whole rows in both parts: of ids alone MySQL reads 128 kB ahead, which is slow
        """
        (SELECT id, name, email FROM accounts WHERE id <= %s ORDER BY id DESC LIMIT 1 OFFSET %s)
        UNION ALL
        (SELECT id, name, email FROM accounts WHERE id > %s ORDER BY id LIMIT %s)
        """,
        *(after, PAGE_SIZE, after, PAGE_SIZE + 1),
    )
    accounts = tuple(sorted(row for row in rows if row[0] > after))
    before = min((id for id, _, _ in rows if id <= after), default=0)
    return Page(
        accounts=accounts[:PAGE_SIZE],
        previous=before if after else None,
        next=accounts[PAGE_SIZE - 1][0] if len(accounts) > PAGE_SIZE else None,
        healthy=healthy,
        health=health,
        failed_probes=failed_probes,
        make_unhealthy=app[SETTINGS].make_unhealthy,
    )


def render_state(page: Page) -> str:
    """Return which container answers and how it is, and the button that makes it unhealthy."""
    button = '<form method="post" action="/make-unhealthy"><button>Make unhealthy</button></form>\n'
    return f"""<header>
<dl>
<div><dt>Container</dt><dd>{html.escape(CONTAINER)}</dd></div>
<div><dt>Running since</dt><dd>{STARTED}</dd></div>
<div><dt>Health</dt><dd class="{"healthy" if page.healthy else "unhealthy"}">{html.escape(page.health)}</dd></div>
</dl>
{button if page.make_unhealthy else ""}<ol aria-live="polite" aria-label="The heal"></ol>
</header>
"""


def render_accounts(page: Page) -> str:
    """Return the table of accounts, or what to do where there are none."""
    if not page.accounts and page.previous is None:
        return "<p>There are no accounts yet. Run the seeder: <code>docker compose up seeder</code>.</p>\n"
    if not page.accounts:
        return "<p>There are no accounts here: the last one is before this page.</p>\n"
    rows = "\n".join(
        f'<tr><td>{id}</td><th scope="row">{html.escape(name)}</th><td>{html.escape(email)}</td></tr>'
        for id, name, email in page.accounts
    )
    return f"""<table>
<caption>{len(page.accounts)} accounts from id {page.accounts[0][0]}</caption>
<thead><tr><th scope="col">Id</th><th scope="col">Name</th><th scope="col">Email</th></tr></thead>
<tbody>
{rows}
</tbody>
</table>
"""


def render_links(page: Page) -> str:
    """Return the links to the pages around this one."""
    links = (("prev", "Previous", page.previous), ("next", "Next", page.next))
    anchors = [f'<a rel="{rel}" href="/?after={after}">{text}</a>' for rel, text, after in links if after is not None]
    return f'<nav aria-label="Pages">{" ".join(anchors)}</nav>' if anchors else ""


@functools.lru_cache(maxsize=64)  # a page that is equal to an earlier one needs no new rendering
def render_html(page: Page) -> bytes:
    """Return the page for people."""
    script = f'<script type="module">{SCRIPT}</script>\n' if page.make_unhealthy else ""
    return render_document("Accounts", render_state(page) + render_accounts(page) + render_links(page), script)


@functools.lru_cache(maxsize=64)
def render_json(page: Page) -> bytes:
    """Return the page for programs."""
    accounts = [{"id": id, "name": name, "email": email} for id, name, email in page.accounts]
    fields = {"container": CONTAINER, "started": STARTED} | asdict(page) | {"accounts": accounts}
    return json.dumps(fields, ensure_ascii=False).encode() + b"\n"


async def html_page(app: web.Application, after: int) -> bytes:
    """Read and render the page for people."""
    return render_html(await read_page(app, after))


async def json_page(app: web.Application, after: int) -> bytes:
    """Read and render the page for programs."""
    return render_json(await read_page(app, after))


# ---------------------------------------------------------------- the handlers

RETRY_AFTER = {"Retry-After": "2"}


def answer(body: bytes, headers: Mapping[str, str], status: int = 200) -> web.Response:
    """Return a response; the last one of its connection where the server stops."""
    response = web.Response(body=body, headers=headers, status=status)
    if stopping:
        response.force_close()  # the client's next request goes where the balancer now points
    return response


def text(sentence: str, status: int = 200, **headers: str) -> web.Response:
    """Return a line of plain text."""
    return answer(f"{sentence}\n".encode(), TEXT_HEADERS | headers, status)


def after_of(request: web.Request) -> int | None:
    """Return the id of the account before the page; None where the request names none that can be."""
    if not request.query_string:
        return 0
    values = request.query.getall("after", ["0"])
    value = values[0]
    if len(values) == 1 and len(value) <= 19 and value.isascii() and value.isdigit() and int(value) <= MAX_ID:
        return int(value)
    return None


async def show_accounts(request: web.Request) -> web.Response:
    """Answer with a page of accounts: HTML, or JSON for who accepts that and no HTML."""
    accept = request.headers.get("Accept", "")
    as_json = "application/json" in accept and "text/html" not in accept
    page, headers = (json_page, JSON_HEADERS) if as_json else (html_page, HTML_HEADERS)
    if (after := after_of(request)) is None:
        return text(f"after must be given once, as a whole number from 0 to {MAX_ID}.", 400)
    try:
        return answer(await request.app[DATABASE].shared(page, request.app, after), headers)
    except DatabaseLost:
        error = "The database does not answer. This page is back as soon as it does: try again in a few seconds."
        advice = f"<p>{error}</p>\n<p><code>docker compose logs db app</code> tells more.</p>"
        body = json.dumps({"error": error}).encode() if as_json else render_document("No database", advice)
        return answer(body, headers | RETRY_AFTER, 503)


async def show_health(request: web.Request) -> web.Response:
    """Liveness: the flag. It never asks the database: no restart of this process would bring that back."""
    global failed_probes
    if healthy:
        return text(health)
    failed_probes += 1
    return text(health, 503)


async def ping(app: web.Application) -> None:
    """Ask for one row: the login, the table and the right to read it are there."""
    await app[DATABASE].query("SELECT 1 FROM accounts LIMIT 1")


async def show_readiness(request: web.Request) -> web.Response:
    """Readiness: the flag, and a database that answers."""
    if stopping or not healthy:
        return text("stopping" if stopping else health, 503)
    try:
        await request.app[DATABASE].shared(ping, request.app)
    except DatabaseLost as lost:
        return text(f"not ready: database lost: {lost}", 503)
    return text("ready")


def is_foreign(request: web.Request) -> bool:
    """Tell whether the web page of another site made a browser send the request."""
    if site := request.headers.get("Sec-Fetch-Site"):
        return site not in ("same-origin", "none")
    # Over plain http browsers send that to localhost alone.
    page = request.headers.get("Origin") or request.headers.get("Referer")
    return page is not None and page.split("/")[2:3] != [request.host]


async def make_unhealthy(request: web.Request) -> web.Response:
    """Lower the flag."""
    global healthy, health
    if not request.app[SETTINGS].make_unhealthy:
        return text("/make-unhealthy is switched off here (MAKE_UNHEALTHY=off).", 403)
    if is_foreign(request):
        return text("/make-unhealthy does not take requests from other sites.", 403)
    if healthy:
        healthy = False
        cause = f"{request.method} /make-unhealthy from {request.remote}"
        health = f"unhealthy since {now()}: {cause}"
        log.warning("flag lowered by %s", cause)
    if request.method == "POST" and "text/html" in request.headers.get("Accept", ""):
        return text(health, 303, Location="/")
    return text(health)


async def show_icon(request: web.Request) -> web.Response:
    """Answer with the favicon."""
    return answer(ICON.strip().encode(), {"Content-Type": "image/svg+xml", "Cache-Control": "max-age=86400"})


async def refuse(request: web.Request) -> web.Response:
    """Answer what no other route takes."""
    routes = (route for route in request.app.router.routes() if route.handler is not refuse)
    allowed = sorted(route.method for route in routes if route.resource and route.resource.canonical == request.path)
    if not allowed:
        return text("There is nothing here. Try /, /health, /ready or /make-unhealthy.", 404)
    return text(f"{request.method} is not allowed here, but {' and '.join(allowed)}.", 405, Allow=", ".join(allowed))


# ---------------------------------------------------------------- the application

SETTINGS = web.AppKey("SETTINGS", Settings)
DATABASE = web.AppKey("DATABASE", Database)


@asynccontextmanager
async def database_context(app: web.Application) -> AsyncIterator[None]:
    """Hold the connections. A request makes the first one: the server starts without a database, too."""
    database = app[DATABASE] = Database(app[SETTINGS].database)
    yield
    await database.close()


@asynccontextmanager
async def drain_context(app: web.Application) -> AsyncIterator[None]:
    """Put DRAIN seconds of refused readiness between SIGTERM and the end, which SIGINT brings at once."""
    loop = asyncio.get_running_loop()

    def drain() -> None:
        global stopping
        if stopping:
            return  # a second SIGINT would cut the requests in flight off
        stopping = True
        log.info("stopping")
        loop.call_later(app[SETTINGS].drain, signal.raise_signal, signal.SIGINT)

    loop.add_signal_handler(signal.SIGTERM, drain)
    yield


def make_app(settings: Settings) -> web.Application:
    """Return the application."""
    app = web.Application()
    app[SETTINGS] = settings
    app.cleanup_ctx.extend([database_context, drain_context])
    app.add_routes(
        [
            web.get("/", show_accounts),
            web.get("/health", show_health),
            web.get("/ready", show_readiness),
            web.get("/make-unhealthy", make_unhealthy, allow_head=False),
            web.post("/make-unhealthy", make_unhealthy),
            web.get("/favicon.ico", show_icon),
            web.route("*", "/{path:.*}", refuse),
        ]
    )
    return app


class AccessLog(AbstractAccessLogger):
    """A line for each request but the successful probes.

    Lines gather in stdout's buffer and are written twenty times a second: a write for each would cost as much
    as the request. What is left there when the interpreter ends, it writes.
    """

    moment = ""  # when the first line of this twentieth of a second came; empty while none waits

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        """Add a line; `time` in seconds."""
        path, status = request.raw_path, response.status
        if status == 200 and path in ("/health", "/ready"):
            return
        if not AccessLog.moment:
            AccessLog.moment = now()
            asyncio.get_running_loop().call_later(0.05, AccessLog.write)
        sys.stdout.write(f"{AccessLog.moment} {request.remote} {request.method} {path!a} {status} {time:.4f} s\n")

    @staticmethod
    def write() -> None:
        """Write the lines that wait."""
        AccessLog.moment = ""
        sys.stdout.flush()


def start_log() -> None:
    """Send what is logged to stdout, a line each."""
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(asctime)s %(message)s", datefmt=TIME_FORMAT)
    logging.getLogger("asyncmy").setLevel(logging.ERROR)  # it warns of a table that exists already, as it should


def is_not_malformed_request(record: logging.LogRecord) -> bool:
    """Leave a malformed request to the access log, which has its 400 already."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


def listeners(host: str, port: int) -> list[socket.socket]:
    """Return a listening socket 16 times over.

    In a turn of its loop uvloop takes one connection from each. Under load a turn is long: with only one, a health
    probe would wait behind a thousand new clients until it fails.
    """
    listener = socket.create_server(
        (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, dualstack_ipv6=host == "::"
    )
    return [listener, *(listener.dup() for _ in range(15))]


def main() -> None:
    """Serve until SIGTERM or SIGINT; SystemExit with a sentence where that cannot be."""
    settings = Settings.read(os.environ)
    start_log()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)  # 1,024 and many more, as of Docker Engine 29
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 8192)), hard))
    gc.set_threshold(10_000)  # a thousand requests at once are no garbage
    log.info("%s starts", CONTAINER)
    # aiohttp has no setting for these: its Server header names versions, and it logs each malformed request as
    # an error of its own, with a traceback.
    web_response.SERVER_SOFTWARE = "cct"  # type: ignore[attr-defined]
    logging.getLogger("aiohttp.server").addFilter(is_not_malformed_request)
    try:
        web.run_app(
            make_app(settings),
            sock=listeners(settings.host, settings.port),
            backlog=4096,
            print=lambda _: log.info("listening on %s:%d", settings.host, settings.port),
            access_log_class=AccessLog,
            shutdown_timeout=3.0,  # spent twice at worst, and the healer kills after 10 s
            loop=uvloop.new_event_loop(),
        )
    except OSError as error:
        raise SystemExit(f"Cannot listen on {settings.host}:{settings.port}: {error.strerror}.") from None
    log.info("stopped")


if __name__ == "__main__":
    main()
