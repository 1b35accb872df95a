"""The server's answers, against a real database."""

import asyncio
import html
import logging
import re
import time
from base64 import b64decode
from pathlib import Path
from string import Template

import pytest
from asyncmy.errors import MySQLError

import server
from database import MAX_ID
from tests.conftest import Client, MakeClient, Sql
from tests.database import DatabaseServer
from tests.helpers import free_port

NOWHERE = {"DB_HOST": "127.0.0.1", "DB_PORT": str(free_port()), "DB_USER": "app", "DB_PASSWORD": "x"}


async def get(client: Client, path: str, status: int = 200, headers: dict[str, str] | None = None) -> str:
    """Return the text of an answer that has the status."""
    response = await client.get(path, headers=headers)
    text = await response.text()
    assert response.status == status, text
    return text


def ids(page: str) -> list[int]:
    return [int(id) for id in re.findall(r"<tr><td>(\d+)</td>", page)]


def link(page: str, text: str) -> str | None:
    match = re.search(rf'<a rel="\w+" href="([^"]+)">{text}</a>', page)
    return match and html.unescape(match[1])


async def test_page_shows_the_first_fifty_accounts_the_container_and_its_start(client: Client) -> None:
    page = await get(client, "/")
    assert ids(page) == list(range(1, 51))
    assert '<th scope="row">Björn Brontë</th><td>account2@example.com</td>' in page
    assert f"<dd>{server.CONTAINER}</dd>" in page
    assert f"<dd>{server.STARTED}</dd>" in page


async def test_links_lead_through_all_accounts_and_back(client: Client) -> None:
    first = await get(client, "/")
    second = await get(client, link(first, "Next") or "")
    third = await get(client, link(second, "Next") or "")
    assert [ids(second), ids(third)] == [list(range(51, 101)), list(range(101, 121))]
    assert link(first, "Previous") is None
    assert link(third, "Next") is None
    assert await get(client, link(third, "Previous") or "") == second
    assert ids(await get(client, link(second, "Previous") or "")) == ids(first)


async def test_links_lead_around_deleted_accounts(client: Client, sql: Sql) -> None:
    sql("DELETE FROM cct.accounts WHERE id BETWEEN 10 AND 60")
    second = await get(client, link(await get(client, "/"), "Next") or "")
    assert ids(second) == list(range(102, 121))
    assert ids(await get(client, link(second, "Previous") or "")) == [*range(1, 10), *range(61, 102)]


async def test_links_end_with_the_last_account_and_lead_back_from_beyond_it(client: Client) -> None:
    assert link(await get(client, "/?after=70"), "Next") is None
    assert link(await get(client, "/?after=69"), "Next") == "/?after=119"
    page = await get(client, f"/?after={MAX_ID}")
    assert "There are no accounts here" in page
    assert link(page, "Previous") == "/?after=70"  # the last 50 of 120


async def test_empty_table_has_a_page_that_says_what_to_do(client: Client, sql: Sql) -> None:
    sql("DELETE FROM cct.accounts")
    page = await get(client, "/")
    assert "There are no accounts yet" in page
    assert "docker compose up seeder" in page


BAD = ("", "x", "-1", "1.5", "1e3", "+1", "%201", "0x10", "1_0", "٣", "%00", "1&after=2", "1;DROP", f"{MAX_ID + 1}")


@pytest.mark.parametrize("after", [*BAD, "9" * 5000])
async def test_bad_after_is_refused_with_a_sentence(client: Client, after: str) -> None:
    sentence = "after must be given once, as a whole number from 0 to 9223372036854775807.\n"
    assert await get(client, f"/?after={after}", 400) == sentence


async def test_hostile_values_are_shown_as_text(client: Client, sql: Sql) -> None:
    hostile = ["<script>alert(1)</script>", "\"'&<>`", "a\u202eb", "🦊", "x" * 254, "</td></table>"]
    for value in hostile:
        sql("INSERT INTO cct.accounts (name, email) VALUES (%s, %s)", value, value)
    page = await get(client, "/?after=120")
    cells = re.findall(r'<th scope="row">(.*?)</th><td>(.*?)</td></tr>', page)
    assert [(html.unescape(name), html.unescape(email)) for name, email in cells] == [(v, v) for v in hostile]
    assert not any("<" in cell or '"' in cell for row in cells for cell in row)


async def test_page_as_json_where_that_alone_is_accepted(client: Client) -> None:
    response = await client.get("/?after=50", headers={"Accept": "application/json"})
    page = await response.json()
    assert [account["id"] for account in page["accounts"]] == list(range(51, 101))
    assert page["accounts"][0] == {"id": 51, "name": "Chloé Nguyễn", "email": "account51@example.com"}
    assert (page["previous"], page["next"]) == (0, 100)
    assert (page["container"], page["started"], page["healthy"]) == (server.CONTAINER, server.STARTED, True)
    assert response.headers["Vary"] == "Accept"
    assert "<table>" in await get(client, "/", headers={"Accept": "text/html,application/json"})


async def test_headers_forbid_what_the_page_does_not_need(client: Client) -> None:
    headers = (await client.get("/")).headers
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"


async def test_lowered_flag_is_told_by_health_ready_and_page(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    assert await get(client, "/health") == "healthy\n"
    assert await get(client, "/ready") == "ready\n"
    caplog.set_level(logging.INFO, "cct")
    told = await get(client, "/make-unhealthy")
    assert re.fullmatch(r"unhealthy since .* UTC: GET /make-unhealthy from 127\.0\.0\.1\n", told)
    assert await get(client, "/health", 503) == told
    assert await get(client, "/ready", 503) == told
    assert f'<dd class="unhealthy">{told.strip()}</dd>' in await get(client, "/")
    assert await get(client, "/make-unhealthy") == told
    assert caplog.messages == ["flag lowered by GET /make-unhealthy from 127.0.0.1"]


async def test_failed_probes_of_the_engine_and_the_kubelet_are_counted_and_no_others(client: Client) -> None:
    for agent, count in (("cct-probe", 0), ("cct-probe", 1), ("kube-probe/1.36", 2), ("curl/8.5.0", 2)):
        await get(client, "/health", 503 if server.unhealthy else 200, {"User-Agent": agent})
        page = await client.get("/", headers={"Accept": "application/json"})
        assert (await page.json())["failed_probes"] == count
        await get(client, "/make-unhealthy")


async def test_head_lowers_nothing_and_post_leads_a_browser_back(client: Client) -> None:
    assert (await client.head("/make-unhealthy")).status == 405
    assert await get(client, "/health") == "healthy\n"
    response = await client.post("/make-unhealthy", headers={"Accept": "text/html"}, allow_redirects=False)
    assert (response.status, response.headers["Location"]) == (303, "/")
    assert "POST /make-unhealthy" in await get(client, "/health", 503)


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Referer": "http://evil.example/127.0.0.1"},
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_page_of_another_site_cannot_lower_the_flag(client: Client, method: str, headers: dict[str, str]) -> None:
    response = await client.request(method, "/make-unhealthy", headers=headers)
    assert response.status == 403
    assert await response.text() == "/make-unhealthy does not take requests from other sites.\n"
    assert await get(client, "/health") == "healthy\n"


async def test_own_page_and_a_typed_address_can_lower_the_flag(client: Client) -> None:
    own = str(client.make_url("/"))
    plain_http = {"Origin": own.rstrip("/"), "Referer": own}
    for headers in ({"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}, plain_http, {}):
        server.unhealthy = ""
        await get(client, "/make-unhealthy", headers=headers)
        await get(client, "/health", 503)


async def test_make_unhealthy_can_be_switched_off(make_client: MakeClient, database: DatabaseServer) -> None:
    client = await make_client(database.env("app") | {"MAKE_UNHEALTHY": "off"})
    assert "switched off" in await get(client, "/make-unhealthy", 403)
    assert await get(client, "/health") == "healthy\n"
    assert "<button>" not in await get(client, "/")


async def test_other_paths_and_methods_are_refused_with_a_sentence(client: Client) -> None:
    assert await get(client, "/nothing", 404) == "There is nothing here. Try /, /health, /ready or /make-unhealthy.\n"
    response = await client.delete("/")
    assert (response.status, await response.text()) == (405, "DELETE is not allowed here, but GET and HEAD.\n")


async def test_icon_is_in_the_page(client: Client) -> None:
    icon = re.search(r'<link rel="icon" href="data:image/svg\+xml;base64,(\S+)">', await get(client, "/"))
    assert icon
    assert b64decode(icon[1]).decode() == server.ICON


OWN = (
    "127.0.0.1",
    "127.0.0.1:5000",
    "[::1]",
    "[::1]:80",
    "10.0.0.7",
    "localhost:80",
    "example.org",
    "CCT.example.org:80",
)
FOREIGN = ("evil.example", "evil.example:80", "localhost.evil.example", "127.0.0.1.evil.example")


@pytest.mark.parametrize("host", [*OWN, *FOREIGN])
async def test_only_allowed_names_and_addresses_are_answered(make_client: MakeClient, host: str) -> None:
    client = await make_client(NOWHERE | {"ALLOWED_HOSTS": "example.org, cct.example.org"})
    status = 421 if host in FOREIGN else 200
    for path in ("/health", "/make-unhealthy"):
        text = await get(client, path, status, {"Host": host})
        assert (text == "The server is not known by this name: see ALLOWED_HOSTS.\n") == (status == 421)
    assert bool(server.unhealthy) == (status == 200)


async def test_any_name_is_answered_by_default_and_a_request_without_one_always(make_client: MakeClient) -> None:
    await get(await make_client(NOWHERE), "/health", headers={"Host": "evil.example"})
    client = await make_client(NOWHERE | {"ALLOWED_HOSTS": "localhost"})
    reader, writer = await asyncio.open_connection(client.host, client.port)
    writer.write(b"GET /health HTTP/1.0\r\n\r\n")
    assert (await reader.read()).endswith(b"healthy\n")
    writer.close()


async def test_request_with_a_body_is_refused_with_a_sentence(client: Client) -> None:
    response = await client.post("/make-unhealthy", data=b"x")
    assert (response.status, await response.text()) == (413, "No request needs a body here.\n")
    assert response.headers["Connection"] == "close"
    assert await get(client, "/health") == "healthy\n"


async def test_server_starts_without_a_database_and_answers_honestly(make_client: MakeClient) -> None:
    client = await make_client(NOWHERE)
    response = await client.get("/")
    assert (response.status, response.headers["Retry-After"]) == (503, "2")
    assert "The database does not answer. Try again in a few seconds." in await response.text()
    response = await client.get("/", headers={"Accept": "application/json"})
    assert await response.json() == {"error": "The database does not answer. Try again in a few seconds."}
    assert "not ready: no answer: Can't connect" in await get(client, "/ready", 503)
    assert await get(client, "/health") == "healthy\n"


async def test_stopped_database_is_lost_and_found_once(
    client: Client, database: DatabaseServer, caplog: pytest.LogCaptureFixture
) -> None:
    await get(client, "/")
    caplog.set_level(logging.INFO, "cct")
    database.stop()
    for _ in range(3):
        await get(client, "/", 503)
        await get(client, "/ready", 503)
    database.start()
    assert len(ids(await get(client, "/"))) == 50
    await get(client, "/ready")
    lost, found = caplog.messages
    assert lost.startswith("accounts cannot be read: no answer: ")
    assert found == "accounts can be read again"


REFUSALS = {
    "missing table": ("RENAME TABLE cct.accounts TO cct.gone", "RENAME TABLE cct.gone TO cct.accounts"),
    "missing column": (
        "ALTER TABLE cct.accounts RENAME COLUMN email TO mail",
        "ALTER TABLE cct.accounts RENAME COLUMN mail TO email",
    ),
    "no right": ("REVOKE SELECT ON cct.* FROM app", "GRANT SELECT ON cct.* TO app"),
}


@pytest.mark.parametrize("kind", REFUSALS)
async def test_what_the_database_refuses_is_told_apart_from_no_answer(
    client: Client, sql: Sql, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    caplog.set_level(logging.INFO, "cct")
    break_, repair = REFUSALS[kind]
    sql(break_)
    try:
        assert "The accounts cannot be read. Try again in a few seconds." in await get(client, "/", 503)
        assert (await get(client, "/ready", 503)).startswith(f"not ready: {kind}: ")
    finally:
        sql(repair)
    await get(client, "/")
    broken, repaired = caplog.messages
    assert broken.startswith(f"accounts cannot be read: {kind}: ")
    assert repaired == "accounts can be read again"


async def test_mistake_in_rendering_is_a_500_with_a_traceback_and_no_matter_of_the_database(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server.render_html.cache_clear()
    monkeypatch.setattr("server.TEMPLATE", Template("$mistake"))
    assert "Traceback" not in await get(client, "/", 500)
    assert "KeyError: 'mistake'" in caplog.text
    assert "accounts cannot be read" not in caplog.text
    await get(client, "/ready")


async def test_hanging_database_is_answered_for_in_time(make_client: MakeClient, database: DatabaseServer) -> None:
    client = await make_client(database.env("app") | {"DB_TIMEOUT": "0.5"})
    await get(client, "/")
    with database.hanging():
        began = time.monotonic()
        await asyncio.gather(*(get(client, f"/?after={i % 3}", 503) for i in range(30)), get(client, "/ready", 503))
        assert time.monotonic() - began < 1.0
        assert await get(client, "/health") == "healthy\n"
    await get(client, "/")


async def test_changed_password_is_read_anew(
    make_client: MakeClient, database: DatabaseServer, sql: Sql, tmp_path: Path
) -> None:
    file = tmp_path / "password"
    settings = database.env("app")
    file.write_text(settings.pop("DB_PASSWORD") + "\n")
    client = await make_client(settings | {"DB_PASSWORD_FILE": str(file), "DB_TIMEOUT": "1"})
    await get(client, "/")
    old = database.passwords["app"]
    try:
        sql("ALTER USER app IDENTIFIED BY 'changed'")
        file.write_text("changed")
        for (connection,) in sql("SELECT id FROM information_schema.processlist WHERE user = 'app'"):
            sql(f"KILL {connection}")
        await get(client, "/")
    finally:
        sql(f"ALTER USER app IDENTIFIED BY '{old}'")


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO accounts (name, email) VALUES ('x', 'x')",
        "UPDATE accounts SET name = 'x'",
        "DELETE FROM accounts",
        "DROP TABLE accounts",
        "CREATE TABLE other (id INT)",
        "SELECT * FROM mysql.user",
        "SELECT 1 INTO OUTFILE '/tmp/cct'",
        "CREATE USER other",
    ],
)
def test_user_of_the_server_can_only_select(database: DatabaseServer, statement: str) -> None:
    with pytest.raises(MySQLError, match="denied"):
        database.sql(statement, user="app")


def test_connection_is_encrypted(database: DatabaseServer) -> None:
    ((_, version),) = database.sql("SHOW STATUS LIKE 'Ssl_version'", user="app")
    assert version.startswith("TLS")


async def test_identity_of_the_database_is_verified_where_asked(
    make_client: MakeClient, database: DatabaseServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = database.env("app") | {"DB_TLS": "verify-identity"}
    assert "certificate verify failed" in await get(await make_client(settings), "/ready", 503)
    monkeypatch.setenv("SSL_CERT_FILE", str(database.directory / "cert.pem"))
    await get(await make_client(settings), "/ready")


async def test_database_refuses_a_login_in_the_clear(make_client: MakeClient, database: DatabaseServer) -> None:
    client = await make_client(database.env("app") | {"DB_TLS": "disabled"})
    assert "not ready" in await get(client, "/ready", 503)
