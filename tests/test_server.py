"""The server's answers, against a real database."""

import asyncio
import html
import logging
import re
import signal
import time
from pathlib import Path

import pytest
from asyncmy.errors import MySQLError

import server
from tests.conftest import Client, MakeClient, Sql
from tests.local import Database, free_port


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
    await sql("DELETE FROM cct.accounts WHERE id BETWEEN 10 AND 60")
    second = await get(client, link(await get(client, "/"), "Next") or "")
    assert ids(second) == list(range(102, 121))
    assert ids(await get(client, link(second, "Previous") or "")) == [*range(1, 10), *range(61, 102)]


async def test_full_last_page_has_no_next(client: Client) -> None:
    assert link(await get(client, "/?after=70"), "Next") is None
    assert link(await get(client, "/?after=69"), "Next") == "/?after=119"


async def test_page_beyond_the_last_account_leads_back(client: Client) -> None:
    page = await get(client, f"/?after={server.MAX_ID}")
    assert "There are no accounts here" in page
    assert link(page, "Previous") == "/?after=70"  # the last 50 of 120


async def test_empty_table_has_a_page_that_says_what_to_do(client: Client, sql: Sql) -> None:
    await sql("DELETE FROM cct.accounts")
    page = await get(client, "/")
    assert "There are no accounts yet" in page
    assert "docker compose up seeder" in page


@pytest.mark.parametrize(
    "query",
    [
        *(
            "after=",
            "after=x",
            "after=-1",
            "after=1.5",
            "after=1e3",
            "after=+1",
            "after=%201",
            "after=0x10",
            "after=1_0",
        ),
        *(
            "after=9223372036854775808",
            "after=" + "9" * 5000,
            "after=٣",
            "after=1&after=2",
            "after=1;DROP",
            "after=%00",
        ),
    ],
)
async def test_bad_after_is_refused_with_a_sentence(client: Client, query: str) -> None:
    assert await get(client, f"/?{query}", 400) == (
        "after must be given once, as a whole number from 0 to 9223372036854775807.\n"
    )


async def test_hostile_values_are_shown_as_text(client: Client, sql: Sql) -> None:
    hostile = ["<script>alert(1)</script>", "\"'&<>`", "a\u202eb", "🦊", "x" * 254, "</td></table>"]
    for value in hostile:
        await sql("INSERT INTO cct.accounts (name, email) VALUES (%s, %s)", value, value)
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
    caplog.set_level(logging.INFO)
    told = await get(client, "/make-unhealthy")
    assert re.fullmatch(r"unhealthy since .* UTC: GET /make-unhealthy from 127\.0\.0\.1\n", told)
    assert await get(client, "/health", 503) == told
    assert await get(client, "/ready", 503) == told
    assert f'<dd class="unhealthy">{told.strip()}</dd>' in await get(client, "/")
    assert await get(client, "/make-unhealthy") == told
    assert [record.message for record in caplog.records] == ["flag lowered by GET /make-unhealthy from 127.0.0.1"]


async def test_failed_probes_are_counted(client: Client) -> None:
    await get(client, "/health")
    await get(client, "/make-unhealthy")
    for _ in range(3):
        await get(client, "/health", 503)
    page = await client.get("/", headers={"Accept": "application/json"})
    assert (await page.json())["failed_probes"] == 3


async def test_post_lowers_the_flag_and_leads_a_browser_back(client: Client) -> None:
    response = await client.post("/make-unhealthy", headers={"Accept": "text/html"}, allow_redirects=False)
    assert (response.status, response.headers["Location"]) == (303, "/")
    assert "POST /make-unhealthy" in await get(client, "/health", 503)


async def test_head_lowers_nothing(client: Client) -> None:
    assert (await client.head("/make-unhealthy")).status == 405
    assert await get(client, "/health") == "healthy\n"


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


async def test_own_page_over_plain_http_can_lower_the_flag(client: Client) -> None:
    own = str(client.make_url("/"))
    response = await client.post("/make-unhealthy", headers={"Origin": own.rstrip("/"), "Referer": own})
    assert response.status == 200


async def test_own_page_and_a_typed_address_can_lower_the_flag(client: Client) -> None:
    await get(client, "/make-unhealthy", headers={"Sec-Fetch-Site": "same-origin"})
    assert await get(client, "/health", 503)
    await get(client, "/make-unhealthy", headers={"Sec-Fetch-Site": "none"})


async def test_make_unhealthy_can_be_switched_off(make_client: MakeClient, database: Database) -> None:
    client = await make_client(database.env("app") | {"MAKE_UNHEALTHY": "off"})
    assert "switched off" in await get(client, "/make-unhealthy", 403)
    assert await get(client, "/health") == "healthy\n"
    assert "<button>" not in await get(client, "/")


async def test_other_paths_and_methods_are_refused_with_a_sentence(client: Client) -> None:
    assert await get(client, "/nothing", 404) == "There is nothing here. Try /, /health, /ready or /make-unhealthy.\n"
    response = await client.delete("/")
    assert (response.status, await response.text()) == (405, "DELETE is not allowed here, but GET and HEAD.\n")


async def test_favicon_is_there(client: Client) -> None:
    assert (await get(client, "/favicon.ico")).startswith("<svg")


async def test_server_starts_without_a_database_and_answers_honestly(make_client: MakeClient) -> None:
    nowhere = {"DB_HOST": "127.0.0.1", "DB_PORT": str(free_port()), "DB_USER": "app", "DB_PASSWORD": "x"}
    client = await make_client(nowhere)
    response = await client.get("/")
    assert (response.status, response.headers["Retry-After"]) == (503, "2")
    assert "The database does not answer." in await response.text()
    assert (await client.get("/", headers={"Accept": "application/json"})).content_type == "application/json"
    assert "not ready: database lost" in await get(client, "/ready", 503)
    assert await get(client, "/health") == "healthy\n"


async def test_stopped_database_is_lost_and_found_once(
    client: Client, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    await get(client, "/")
    caplog.set_level(logging.INFO)
    database.stop()
    for _ in range(3):
        await get(client, "/", 503)
        await get(client, "/ready", 503)
    database.start()
    assert len(ids(await get(client, "/"))) == 50
    await get(client, "/ready")
    lost, found = (record.message for record in caplog.records)
    assert lost.startswith("database lost: ")
    assert found.startswith("database found again after ")


async def test_hanging_database_is_answered_for_in_time(make_client: MakeClient, database: Database) -> None:
    client = await make_client(database.env("app") | {"DB_TIMEOUT": "0.5"})
    await get(client, "/")
    assert database.process
    database.process.send_signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        await asyncio.gather(*(get(client, f"/?after={i % 3}", 503) for i in range(30)), get(client, "/ready", 503))
        assert time.monotonic() - began < 1.0
        assert await get(client, "/health") == "healthy\n"
    finally:
        database.process.send_signal(signal.SIGCONT)
    await get(client, "/")


async def test_dropped_table_is_an_honest_503(client: Client, sql: Sql) -> None:
    await sql("RENAME TABLE cct.accounts TO cct.gone")
    try:
        await get(client, "/", 503)
        assert "cct.accounts' doesn't exist" in await get(client, "/ready", 503)
    finally:
        await sql("RENAME TABLE cct.gone TO cct.accounts")
    await get(client, "/")


async def test_changed_password_is_read_anew(
    make_client: MakeClient, database: Database, sql: Sql, tmp_path: Path
) -> None:
    file = tmp_path / "password"
    settings = database.env("app")
    file.write_text(settings.pop("DB_PASSWORD") + "\n")
    client = await make_client(settings | {"DB_PASSWORD_FILE": str(file), "DB_TIMEOUT": "1"})
    await get(client, "/")
    old = database.passwords["app"]
    try:
        await sql("ALTER USER app IDENTIFIED BY 'changed'")
        file.write_text("changed")
        for (connection,) in await sql("SELECT id FROM information_schema.processlist WHERE user = 'app'"):
            await sql(f"KILL {connection}")
        await get(client, "/")
    finally:
        await sql(f"ALTER USER app IDENTIFIED BY '{old}'")


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
async def test_user_of_the_server_can_only_select(database: Database, statement: str) -> None:
    connections = server.Database(server.DatabaseSettings.read(database.env("app")))
    with pytest.raises(MySQLError, match="denied"):
        await connections.query(statement)
    await connections.close()


async def test_connection_is_encrypted(database: Database) -> None:
    connections = server.Database(server.DatabaseSettings.read(database.env("app")))
    ((_, version),) = await connections.query("SHOW STATUS LIKE 'Ssl_version'")
    assert version.startswith("TLS")
    await connections.close()


async def test_identity_of_the_database_is_verified_where_asked(
    make_client: MakeClient, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = database.env("app") | {"DB_TLS": "verify-identity"}
    assert "certificate verify failed" in await get(await make_client(settings), "/ready", 503)
    monkeypatch.setenv("SSL_CERT_FILE", str(database.directory / "cert.pem"))
    await get(await make_client(settings), "/ready")


async def test_database_refuses_a_login_in_the_clear(make_client: MakeClient, database: Database) -> None:
    client = await make_client(database.env("app") | {"DB_TLS": "disabled"})
    assert "not ready" in await get(client, "/ready", 503)
