"""The ceiling: aiohttp answers with the page of cct as a constant, and keeps no log."""

from urllib.request import Request, urlopen

from aiohttp import web

from server import HEADERS, HTML

with urlopen(Request("http://app", headers={"Host": "localhost", "Accept": "text/html"})) as answer:
    PAGE = answer.read()


async def show_page(request: web.Request) -> web.Response:
    """Answer with the page."""
    return web.Response(body=PAGE, headers=HEADERS | HTML)


app = web.Application()
app.router.add_get("/", show_page)
web.run_app(app, port=80, access_log=None, print=None, backlog=4096)
