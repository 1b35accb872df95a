"""server.py without the parts that the command line names, to see what each one costs."""

import sys
from typing import Any

from aiohttp import web

import server
from database import Database, Page, Rows
from settings import Settings


class WithoutLog(server.AccessLog):
    """No access log."""

    enabled = False


class WithoutQuery(Database):
    """The rows of the first query for all requests."""

    rows: Rows = ()

    async def query(self, after: int) -> Rows:
        """Return the rows that are kept."""
        self.rows = self.rows or await super().query(after)
        return self.rows


class WithoutSharing(Database):
    """The first page for all requests: none waits."""

    kept: Page | None = None

    async def page(self, after: int) -> Page:
        """Return the page that is kept."""
        self.kept = self.kept or await super().page(after)
        return self.kept


make_app = server.make_app


def make_app_without_guard(settings: Settings) -> web.Application:
    """Return the application without its middleware."""
    app = make_app(settings)
    app.middlewares.clear()
    return app


PARTS: dict[str, tuple[str, Any]] = {
    "query": ("Database", WithoutQuery),
    "sharing": ("Database", WithoutSharing),
    "log": ("AccessLog", WithoutLog),
    "guard": ("make_app", make_app_without_guard),
}

if __name__ == "__main__":
    for part in sys.argv[1:]:
        setattr(server, *PARTS[part])
    server.main()
