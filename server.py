"""The web application of cct: a page of accounts, and the health that the engine watches.

A request passes `guard`, then one of the handlers that `make_app` registers. Handlers that need
accounts wait in `Database.page`. aiohttp itself answers 400 (a malformed request), 417 (an unknown
Expect) and 500 (a mistake in a handler).
"""

import asyncio
import html
import ipaddress
import json
import logging
import os
import re
import socket
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Mapping
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from string import Template
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler

from database import MAX_ID, Account, Database, Page, ReadError
from run import run
from server_log import utc_time
from settings import Settings

log = logging.getLogger("cct")


# The health flag: why the server is unhealthy, empty while it is healthy. Only a restart clears it.
unhealthy_reason = ""
failed_probes = 0  # probes that failed since the flag was set, for the page
stopping = False  # True after SIGTERM: /ready refuses, each response closes its connection

CONTAINER = socket.gethostname()
STARTED = utc_time(int(time.time()))


def csp_hash(source: str) -> str:
    """Return the hash that lets a browser use this style or script, and no other."""
    digest = b64encode(sha256(source.encode()).digest())
    return f"'sha256-{digest.decode()}'"


FILES = Path(__file__).with_name("page")
STYLE = (FILES / "page.css").read_text()
SCRIPT = (FILES / "page.js").read_text()
ICON = (FILES / "icon.svg").read_text()
TEMPLATE = Template((FILES / "page.html").read_text())  # a literal $ is $$ there
# The assets are inside the page: replicas of two versions never mix their files.
ASSETS = f"""<link rel="icon" href="data:image/svg+xml;base64,{b64encode(ICON.encode()).decode()}">
<style>{STYLE}</style>
<script type="module">{SCRIPT}</script>"""
BUTTON = '<form method="post" action="/make-unhealthy"><button>Make unhealthy</button></form>'
NO_PAGE = Page()  # one object for all errors: the caches below compare pages by identity


@lru_cache(maxsize=64)
def render_html(page: Page, reason: str, button: str, error: str) -> bytes:
    """Return a page for people. `error` says why the accounts cannot be read, or is empty."""
    return TEMPLATE.substitute(
        title="No accounts" if error else "Accounts",
        assets=ASSETS,
        container=html.escape(CONTAINER),
        started=STARTED,
        state="unhealthy" if reason else "healthy",
        health=html.escape(reason or "healthy"),
        button=button,
        message=error or describe(page),
        rows="\n".join(render_row(account) for account in page.accounts),
        previous=render_link("prev", "Previous", page.previous),
        next=render_link("next", "Next", page.next),
    ).encode()


def describe(page: Page) -> str:
    """Return which accounts a page shows, or why it shows none."""
    if page.accounts:
        return f"Accounts from id {page.accounts[0].id} to id {page.accounts[-1].id}"
    if page.previous is None:  # the first page
        return "There are no accounts yet. Run the seeder."
    return "There are no accounts after this id."


def render_row(account: Account) -> str:
    """Return a row of the table."""
    name = html.escape(account.name)
    email = html.escape(account.email)
    return f'<tr><td>{account.id}</td><th scope="row">{name}</th><td>{email}</td></tr>'


def render_link(relation: str, label: str, after: int | None) -> str:
    """Return a link to the page after an id, empty if there is no such page."""
    if after is None:
        return ""
    return f'<a rel="{relation}" href="/?after={after}">{label}</a>'


@lru_cache(maxsize=64)
def render_json(page: Page, reason: str, probes: int, error: str) -> bytes:
    """Return a page for programs, or only the error."""
    fields = {
        "container": CONTAINER,
        "started": STARTED,
        "healthy": reason == "",
        "health": reason or "healthy",
        "failed_probes": probes,
        "accounts": [account._asdict() for account in page.accounts],
        "previous": page.previous,
        "next": page.next,
    }
    content = {"error": error} if error else fields
    return json.dumps(content, ensure_ascii=False).encode() + b"\n"


HEADERS = {"Cache-Control": "no-store", "Server": "cct", "X-Content-Type-Options": "nosniff"}
TEXT_HEADERS = HEADERS | {"Content-Type": "text/plain; charset=utf-8"}
JSON_HEADERS = HEADERS | {"Content-Type": "application/json"}
HTML_HEADERS = HEADERS | {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": (
        f"default-src 'none'; style-src {csp_hash(STYLE)}; script-src {csp_hash(SCRIPT)}; "
        "connect-src 'self'; img-src data:; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    ),
}


def make_response(body: bytes, headers: Mapping[str, str], status: int = 200) -> web.Response:
    """Return a response. A 503 says when to try again."""
    response = web.Response(body=body, headers=headers, status=status)
    if status == 503:
        response.headers["Retry-After"] = "2"  # seconds
    if stopping:
        response.force_close()  # the client's next request goes to another replica
    return response


def text_response(sentence: str, status: int = 200, **headers: str) -> web.Response:
    """Return a line of plain text."""
    return make_response(f"{sentence}\n".encode(), TEXT_HEADERS | headers, status)


def refuse(sentence: str, status: int) -> web.Response:
    """Return a line of plain text, and close the connection instead of reading more from it."""
    response = text_response(sentence, status)
    response.force_close()
    return response


SETTINGS = web.AppKey("SETTINGS", Settings)
DATABASE = web.AppKey("DATABASE", Database)
SENTENCES = {
    "no answer": "The database does not answer.",
    "busy": "Too many pages are asked for at once.",
}
MAX_AHEAD = 8  # requests that may wait behind the current one (pipelining)


@web.middleware
async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse bad requests before a handler sees them; tell the client why."""
    # A client may send many requests at once (pipelining). Without this pause, aiohttp would answer
    # them all before other clients.
    await asyncio.sleep(0)
    # aiohttp has no public name for the requests that wait behind this one.
    if len(request.protocol._messages) > MAX_AHEAD:
        return refuse("Wait for answers before you send more requests.", 429)
    if not is_allowed(request.headers.get("Host", ""), request.app[SETTINGS].allowed_hosts):
        return text_response("The server is not known by this name: see ALLOWED_HOSTS.", 421)
    if request.body_exists:
        return refuse("No request needs a body here.", 413)
    try:
        return await handler(request)
    except web.HTTPNotFound:
        return text_response("There is nothing here. Try /, /health or /ready.", 404)
    except web.HTTPMethodNotAllowed as error:
        methods = sorted(error.allowed_methods)
        sentence = f"{request.method} is not allowed here, but {' and '.join(methods)}."
        return text_response(sentence, 405, Allow=", ".join(methods))


@lru_cache(maxsize=64)
def is_allowed(host: str, names: str) -> bool:
    """Return whether a Host header is an address, localhost or one of the names.

    Other names may belong to a hostile site that points them here (DNS rebinding).
    """
    if names == "*" or not host:  # HTTP/1.0 names no host
        return True
    name = re.sub(":[0-9]*$", "", host).removesuffix(".").lower()
    if name in ("localhost", *names.lower().replace(",", " ").split()):
        return True
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


async def show_accounts(request: web.Request) -> web.Response:
    """Answer with a page of accounts, or with a 503 that says why they cannot be read."""
    after = parse_after(request.query.getall("after", ["0"]))
    if after is None:
        return text_response(
            f"after must be given once, as a whole number from 0 to {MAX_ID}.", 400
        )
    try:
        page = await request.app[DATABASE].page(after)
    except ReadError as failure:
        sentence = SENTENCES.get(failure.kind, "The accounts cannot be read.")
        return show_page(request, NO_PAGE, f"{sentence} Try again in a few seconds.")
    return show_page(request, page, "")


def show_page(request: web.Request, page: Page, error: str) -> web.Response:
    """Return a page as JSON if the client accepts JSON but not HTML, otherwise as HTML."""
    status = 503 if error else 200
    accept = request.headers.get("Accept", "")
    if "application/json" in accept and "text/html" not in accept:
        body = render_json(page, unhealthy_reason, failed_probes, error)
        return make_response(body, JSON_HEADERS, status)
    button = BUTTON if request.app[SETTINGS].make_unhealthy == "on" else ""
    return make_response(render_html(page, unhealthy_reason, button, error), HTML_HEADERS, status)


def parse_after(values: list[str]) -> int | None:
    """Return the `after` of a query; None if it is invalid or given twice."""
    if len(values) != 1 or not re.fullmatch("[0-9]{1,19}", values[0]):
        return None
    after = int(values[0])
    return after if after <= MAX_ID else None


async def show_health(request: web.Request) -> web.Response:
    """Liveness: the flag. A restart would not repair the database, so the database is not asked."""
    global failed_probes
    if not unhealthy_reason:
        return text_response("healthy")
    agent = request.headers.get("User-Agent", "")
    if agent.startswith(("cct-probe", "kube-probe/")):  # probe.py, the kubelet
        failed_probes += 1
    return text_response(unhealthy_reason, 503)


async def show_readiness(request: web.Request) -> web.Response:
    """Readiness: not stopping, no flag, and the first page can be read."""
    if stopping:
        return text_response("stopping", 503)
    if unhealthy_reason:
        return text_response(unhealthy_reason, 503)
    try:
        await request.app[DATABASE].page(0)
    except ReadError as error:
        return text_response(f"not ready: {error}", 503)
    return text_response("ready")


async def make_unhealthy(request: web.Request) -> web.Response:
    """Set the health flag."""
    global unhealthy_reason
    if is_foreign(request):
        return text_response(
            "/make-unhealthy takes no requests from other sites. A proxy must forward Host.", 403
        )
    if not unhealthy_reason:
        cause = f"{request.method} /make-unhealthy from {request.remote}"
        unhealthy_reason = f"unhealthy since {utc_time(int(time.time()))}: {cause}"
        log.warning("made unhealthy by %s", cause)
    if request.method == "POST" and "text/html" in request.headers.get("Accept", ""):
        return text_response(unhealthy_reason, 303, Location="/")  # the form, without JavaScript
    return text_response(unhealthy_reason)


def is_foreign(request: web.Request) -> bool:
    """Return whether a browser sent the request on behalf of another site."""
    site = request.headers.get("Sec-Fetch-Site")
    if site:
        return site not in ("same-origin", "none")
    # Over plain HTTP, browsers send Sec-Fetch-Site only to localhost. Elsewhere, compare the
    # origin with the host.
    origin = request.headers.get("Origin") or request.headers.get("Referer")
    if origin is None:
        return False
    try:
        return urlsplit(origin).netloc != request.host
    except ValueError:  # an invalid address, such as http://[::1
        return True


def make_app(settings: Settings) -> web.Application:
    """Return the application. It needs no database to start: the first request connects."""
    app = web.Application(middlewares=[guard])
    app[SETTINGS] = settings
    app.cleanup_ctx.append(open_database)
    app.router.add_get("/", show_accounts)
    app.router.add_get("/health", show_health)
    app.router.add_get("/ready", show_readiness)
    if settings.make_unhealthy == "on":
        app.router.add_get("/make-unhealthy", make_unhealthy, allow_head=False)
        app.router.add_post("/make-unhealthy", make_unhealthy)
    return app


async def open_database(app: web.Application) -> AsyncIterator[None]:
    """Create the database's pool at the start; close its connections at the stop."""
    app[DATABASE] = Database(app[SETTINGS])
    yield
    await app[DATABASE].close()


def begin_stopping() -> None:
    """Make /ready refuse, and each response close its connection."""
    global stopping
    stopping = True


def main() -> None:
    """Run the server until SIGTERM or SIGINT; exit with a message if it cannot start."""
    settings = Settings(os.environ)
    run(make_app(settings), settings, on_stop=begin_stopping)


if __name__ == "__main__":
    main()
