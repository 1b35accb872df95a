"""FastAPI on uvicorn with uvloop and httptools, asyncmy's pool."""

import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncmy
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse
from fastapi.templating import Jinja2Templates

tls = ssl.create_default_context()
tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
templates = Jinja2Templates(os.environ["PAGES"])


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Hold the connections."""
    app.state.pool = await asyncmy.create_pool(
        host=os.environ["DB_HOST"],
        port=int(os.environ["DB_PORT"]),
        user=os.environ["DB_USER"],
        password=os.environ["DB_PASSWORD"],
        database="cct",
        autocommit=True,
        ssl=tls,
        maxsize=8,
    )
    yield
    app.state.pool.terminate()


app = FastAPI(lifespan=lifespan)


@app.get("/")
async def show_accounts(request: Request, after: int = 0) -> HTMLResponse:
    """Answer with a page of accounts."""
    async with app.state.pool.acquire() as connection, connection.cursor() as cursor:
        await cursor.execute(
            "SELECT id, name, email FROM accounts WHERE id > %s ORDER BY id LIMIT 50", (after,)
        )
        accounts = await cursor.fetchall()
    return templates.TemplateResponse(request, "page.html", {"accounts": accounts})
