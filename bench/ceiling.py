"""The ceiling: aiohttp on uvloop. It answers with a constant page, and keeps no log."""

import os
from pathlib import Path

import uvloop
from aiohttp import web

from run import LISTENERS, listen
from server import HTML_HEADERS

PAGE = Path(os.environ["PAGE"]).read_bytes()


async def show_page(request: web.Request) -> web.Response:
    """Answer with the page."""
    return web.Response(body=PAGE, headers=HTML_HEADERS)


def main() -> None:
    """Serve until SIGTERM, on as many listeners as the server has."""
    app = web.Application()
    app.router.add_get("/", show_page)
    listener = listen("127.0.0.1", int(os.environ["PORT"]))
    web.run_app(
        app,
        sock=[listener] + [listener.dup() for _ in range(LISTENERS - 1)],
        access_log=None,
        print=None,
        backlog=4096,
        loop=uvloop.new_event_loop(),
    )


if __name__ == "__main__":
    main()
