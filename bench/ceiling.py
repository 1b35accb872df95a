"""The ceiling: aiohttp on uvloop answers the same bytes and headers, constant, without a log."""

import os
from pathlib import Path

import uvloop
from aiohttp import web

from server import HTML_HEADERS, listeners

BODY = (Path(os.environ["PAGES"]) / "page.txt").read_bytes()


async def show_page(request: web.Request) -> web.Response:
    """Answer with the page."""
    return web.Response(body=BODY, headers=HTML_HEADERS)


app = web.Application()
app.add_routes([web.get("/", show_page)])
web.run_app(
    app,
    sock=listeners("127.0.0.1", int(os.environ["PORT"])),
    access_log=None,
    print=None,
    backlog=4096,
    loop=uvloop.new_event_loop(),
)
