"""server.py: its answers, from a real database."""

import asyncio
import logging
import re
from base64 import b64encode
from collections.abc import Iterator
from string import Template

import pytest
from asyncmy.errors import MySQLError
from database import MAX_ID

import server
from tests.app.conftest import Client, MakeClient
from tools.private_database import PrivateDatabase

UNREAD = "The accounts cannot be read. Try again in a few seconds."
NO_ANSWER = "The database does not answer. Try again in a few seconds."
NOT_KNOWN = "The server is not known by this name: see ALLOWED_HOSTS.\n"
JSON = {"Accept": "application/json"}


async def get(
    client: Client, path: str, status: int = 200, headers: dict[str, str] | None = None
) -> str:
    """Return the text of an answer; assert its status."""
    response = await client.get(path, headers=headers)
    text = await response.text()
    assert response.status == status, text
    return text


async def get_raw(client: Client, request: str, end: bytes = b"</html>\n") -> str:
    """Send bytes, and return the answer up to the bytes `end`."""
    reader, writer = await asyncio.open_connection(client.host, client.port)
    try:
        writer.write(request.encode())
        async with asyncio.timeout(5):
            answer = await reader.readuntil(end)
    finally:
        writer.close()
    return answer.decode()


def ids(page: str) -> list[int]:
    """Return the ids of the accounts in a page."""
    return [int(id) for id in re.findall(r"<tr><td>(\d+)</td>", page)]


def link(page: str, text: str) -> str:
    """Return the target of a link in a page; empty if the page has no such link."""
    match = re.search(rf'<a rel="\w+" href="([^"]+)">{text}</a>', page)
    return match[1] if match else ""


def make_table(database: PrivateDatabase, columns: str, values: str) -> None:
    """Replace the table by one with other columns; add one account."""
    database.sql("DROP TABLE cct.accounts")
    database.sql(f"CREATE TABLE cct.accounts ({columns}) CHARACTER SET utf8mb4")
    database.sql(f"INSERT INTO cct.accounts VALUES ({values})")


# The page


async def test_page_shows_the_first_fifty_accounts(client: Client) -> None:
    page = await get(client, "/")
    assert ids(page) == list(range(1, 51))
    assert "Accounts from id 1 to id 50" in page
    assert '<th scope="row">Björn Brontë</th><td>account2@example.com</td>' in page


async def test_page_shows_the_container_and_its_start(client: Client) -> None:
    page = await get(client, "/")
    assert f'<dd id="container">{server.CONTAINER}</dd>' in page
    assert f'<dd id="started">{server.STARTED}</dd>' in page


async def test_page_contains_its_icon_style_and_script(client: Client) -> None:
    page = await get(client, "/")
    icon = b64encode(server.ICON.encode()).decode()
    assert f'<link rel="icon" href="data:image/svg+xml;base64,{icon}">' in page
    assert f"<style>{server.STYLE}</style>" in page
    assert f'<script type="module">{server.SCRIPT}</script>' in page


async def test_links_lead_through_all_accounts_and_back(
    client: Client, database: PrivateDatabase
) -> None:
    """Each page is full, although accounts were deleted."""
    database.sql("DELETE FROM cct.accounts WHERE id BETWEEN 10 AND 20")
    first = await get(client, "/")
    second = await get(client, link(first, "Next"))
    third = await get(client, link(second, "Next"))
    assert ids(first) == [*range(1, 10), *range(21, 62)]
    assert ids(second) == list(range(62, 112))
    assert ids(third) == list(range(112, 121))
    assert link(first, "Previous") == ""
    assert link(third, "Next") == ""
    assert await get(client, link(third, "Previous")) == second
    assert ids(await get(client, link(second, "Previous"))) == ids(first)


async def test_next_ends_with_the_last_account(client: Client) -> None:
    assert link(await get(client, "/?after=70"), "Next") == ""
    assert link(await get(client, "/?after=69"), "Next") == "/?after=119"


async def test_page_behind_the_last_account_leads_back(client: Client) -> None:
    page = await get(client, f"/?after={MAX_ID}")
    assert "There are no accounts after this id." in page
    assert link(page, "Previous") == "/?after=70"  # the last 50 of 120


async def test_empty_table_names_the_seeder(client: Client, database: PrivateDatabase) -> None:
    database.sql("DELETE FROM cct.accounts")
    assert "There are no accounts yet. Run the seeder." in await get(client, "/")


BAD_AFTER = ["", "x", "-1", "1.5", "1e3", "+1", "%201", "0x10", "1_0", "٣", "%00"]
BAD_AFTER += ["1&after=2", "1;DROP", str(MAX_ID + 1), "9" * 5000]


@pytest.mark.parametrize("after", BAD_AFTER)
async def test_bad_after_is_refused_with_a_sentence(client: Client, after: str) -> None:
    sentence = "after must be given once, as a whole number from 0 to 9223372036854775807.\n"
    assert await get(client, f"/?after={after}", 400) == sentence


async def test_page_is_json_where_only_json_is_accepted(client: Client) -> None:
    response = await client.get("/?after=50", headers=JSON)
    assert response.content_type == "application/json"
    page = await response.json()
    account = {"id": 51, "name": "Chloé Nguyễn", "email": "account51@example.com"}
    assert page["accounts"][0] == account
    assert [account["id"] for account in page["accounts"]] == list(range(51, 101))
    assert page["previous"] == 0
    assert page["next"] == 100
    assert page["container"] == server.CONTAINER
    assert page["started"] == server.STARTED
    assert page["healthy"] is True
    assert page["health"] == "healthy"


async def test_page_is_html_where_both_are_accepted(client: Client) -> None:
    page = await get(client, "/", headers={"Accept": "text/html,application/json"})
    assert page.startswith("<!doctype html>")


async def test_headers_forbid_what_the_page_does_not_need(client: Client) -> None:
    headers = (await client.get("/")).headers
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"


async def test_mistake_in_rendering_is_a_500_with_a_traceback(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Only the log has the traceback. The log does not blame the database."""
    server.render_html.cache_clear()
    monkeypatch.setattr("server.TEMPLATE", Template("$mistake"))
    assert "Traceback" not in await get(client, "/", 500)
    assert "KeyError: 'mistake'" in caplog.text
    assert "accounts cannot be read" not in caplog.text
    await get(client, "/ready")


# The flag


async def test_flag_shows_in_health_readiness_and_page(client: Client) -> None:
    assert await get(client, "/health") == "healthy\n"
    assert await get(client, "/ready") == "ready\n"
    told = await get(client, "/make-unhealthy")
    assert re.fullmatch(r"unhealthy since .* UTC: GET /make-unhealthy from 127\.0\.0\.1\n", told)
    assert await get(client, "/health", 503) == told
    assert await get(client, "/ready", 503) == told
    assert f'<dd id="health" class="unhealthy">{told.strip()}</dd>' in await get(client, "/")


async def test_flag_is_set_and_logged_once(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "cct")
    first = await get(client, "/make-unhealthy")
    assert await get(client, "/make-unhealthy") == first
    assert caplog.messages == ["made unhealthy by GET /make-unhealthy from 127.0.0.1"]


async def failed_probes(client: Client) -> object:
    response = await client.get("/", headers=JSON)
    page = await response.json()
    return page["failed_probes"]


async def test_only_failed_probes_are_counted(client: Client) -> None:
    probe = {"User-Agent": "cct-probe"}
    await get(client, "/health", 200, probe)
    assert await failed_probes(client) == 0
    await get(client, "/make-unhealthy")
    await get(client, "/health", 503, {"User-Agent": "curl/8.5.0"})
    assert await failed_probes(client) == 0
    await get(client, "/health", 503, probe)
    assert await failed_probes(client) == 1
    await get(client, "/health", 503, {"User-Agent": "kube-probe/1.36"})
    assert await failed_probes(client) == 2


async def test_head_does_not_set_the_flag(client: Client) -> None:
    assert (await client.head("/make-unhealthy")).status == 405
    assert await get(client, "/health") == "healthy\n"


async def test_form_sets_the_flag_and_leads_back(client: Client) -> None:
    browser = {"Accept": "text/html"}
    response = await client.post("/make-unhealthy", headers=browser, allow_redirects=False)
    assert response.status == 303
    assert response.headers["Location"] == "/"
    assert "POST /make-unhealthy" in await get(client, "/health", 503)


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1"},
        {"Origin": "http://evil.example"},
        {"Origin": "http://[::1"},
        {"Origin": "null"},
        {"Referer": "http://evil.example/127.0.0.1"},
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_page_of_another_site_cannot_set_the_flag(
    client: Client, method: str, headers: dict[str, str]
) -> None:
    response = await client.request(method, "/make-unhealthy", headers=headers)
    assert response.status == 403
    assert (
        await response.text()
        == "/make-unhealthy takes no requests from other sites. A proxy must forward Host.\n"
    )
    assert await get(client, "/health") == "healthy\n"


@pytest.mark.parametrize("site", ["same-origin", "none"])
async def test_own_page_and_typed_address_set_the_flag(client: Client, site: str) -> None:
    await get(client, "/make-unhealthy", headers={"Sec-Fetch-Site": site})
    await get(client, "/health", 503)


async def test_own_page_sets_the_flag_over_plain_http(client: Client) -> None:
    """Over plain HTTP, browsers send Sec-Fetch-Site only to localhost."""
    page = str(client.make_url("/"))
    await get(client, "/make-unhealthy", headers={"Origin": page.rstrip("/"), "Referer": page})
    await get(client, "/health", 503)


async def test_make_unhealthy_can_be_switched_off(
    make_client: MakeClient, database: PrivateDatabase
) -> None:
    client = await make_client(database.env("app") | {"MAKE_UNHEALTHY": "off"})
    nothing = await get(client, "/nothing", 404)
    assert await get(client, "/make-unhealthy", 404) == nothing
    assert (await client.post("/make-unhealthy")).status == 404
    assert await get(client, "/health") == "healthy\n"
    assert "<button>" not in await get(client, "/")


# Requests that are refused


async def test_other_path_is_refused_with_a_sentence(client: Client) -> None:
    sentence = "There is nothing here. Try /, /health or /ready.\n"
    assert await get(client, "/nothing", 404) == sentence


async def test_other_method_is_refused_with_a_sentence(client: Client) -> None:
    response = await client.delete("/")
    assert response.status == 405
    assert response.headers["Allow"] == "GET, HEAD"
    assert await response.text() == "DELETE is not allowed here, but GET and HEAD.\n"


async def test_body_is_refused_with_a_sentence(client: Client) -> None:
    response = await client.post("/make-unhealthy", data=b"x")
    assert response.status == 413
    assert response.headers["Connection"] == "close"
    assert await response.text() == "No request needs a body here.\n"
    assert await get(client, "/health") == "healthy\n"


async def test_body_that_never_comes_is_refused_at_once(client: Client) -> None:
    request = "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n"
    answer = await get_raw(client, request, b"No request needs a body here.\n")
    assert answer.startswith("HTTP/1.1 413 ")


ALLOWED = ["", "127.0.0.1", "127.0.0.1:5000", "10.0.0.7", "[::1]", "[::1]:80"]
ALLOWED += ["localhost", "localhost:80", "localhost.", "LOCALHOST.:80", "Localhost"]
ALLOWED += ["example.org", "example.org.", "EXAMPLE.ORG:80", "CCT.example.org:80"]
FOREIGN = ["evil.example", "evil.example:80", "evil.example.", "localhost.evil.example"]
FOREIGN += ["127.0.0.1.evil.example", "example.org.evil.example", "[::1", "[evil.example]"]
FOREIGN += ["::::", "[", "]", ".", ":", "%", "localhost..", "example.org:80:80"]


@pytest.fixture
async def named_client(make_client: MakeClient, database: PrivateDatabase) -> Client:
    """Return a client of a server with two allowed names."""
    names = {"ALLOWED_HOSTS": "example.org, cct.example.org"}
    return await make_client(database.env("app") | names)


@pytest.mark.parametrize("host", ALLOWED)
async def test_allowed_host_is_answered(named_client: Client, host: str) -> None:
    await get(named_client, "/health", headers={"Host": host})
    await get(named_client, "/make-unhealthy", headers={"Host": host})
    await get(named_client, "/health", 503)


@pytest.mark.parametrize("host", FOREIGN)
async def test_other_host_is_refused_with_a_sentence(named_client: Client, host: str) -> None:
    assert await get(named_client, "/health", 421, {"Host": host}) == NOT_KNOWN
    assert await get(named_client, "/make-unhealthy", 421, {"Host": host}) == NOT_KNOWN
    assert await get(named_client, "/health") == "healthy\n"


@pytest.mark.parametrize("host", ["evil.example", "[::1", ""])
async def test_any_host_is_answered_by_default(client: Client, host: str) -> None:
    await get(client, "/", headers={"Host": host})


# The database


async def assert_no_answer(client: Client) -> None:
    """Assert that the server says that its database does not answer, and stays healthy."""
    response = await client.get("/")
    assert response.status == 503
    assert response.headers["Retry-After"] == "2"
    assert NO_ANSWER in await response.text()
    response = await client.get("/", headers=JSON)
    assert response.status == 503
    assert await response.json() == {"error": NO_ANSWER}
    assert (await get(client, "/ready", 503)).startswith("not ready: no answer: ")
    assert await get(client, "/health") == "healthy\n"


def assert_one_outage(messages: list[str], kind: str) -> None:
    """Assert that the log has one line for the fault, and one for its end."""
    lost, found = messages
    assert lost.startswith(f"accounts cannot be read: {kind}: ")
    assert found == "accounts can be read again"


async def test_database_may_come_after_the_server(
    client: Client, database: PrivateDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "cct")
    with database.stopped():
        await assert_no_answer(client)
    assert len(ids(await get(client, "/"))) == 50
    assert_one_outage(caplog.messages, "no answer")


async def test_lost_database_is_found_again(
    client: Client, database: PrivateDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "cct")
    await get(client, "/")  # now there is a connection that gets lost
    with database.stopped():
        await assert_no_answer(client)
    assert len(ids(await get(client, "/"))) == 50
    assert_one_outage(caplog.messages, "no answer")


# By the kind of the error: a fault, and its repair.
FAULTS = {
    "missing table": (
        "RENAME TABLE cct.accounts TO cct.gone",
        "RENAME TABLE cct.gone TO cct.accounts",
    ),
    "missing column": (
        "ALTER TABLE cct.accounts RENAME COLUMN email TO mail",
        "ALTER TABLE cct.accounts RENAME COLUMN mail TO email",
    ),
    "access denied": (
        "REVOKE SELECT ON cct.* FROM app",
        "GRANT SELECT ON cct.* TO app",
    ),
}


@pytest.mark.parametrize("kind", FAULTS)
async def test_error_of_the_database_is_named_by_its_kind(
    client: Client, database: PrivateDatabase, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    fault, repair = FAULTS[kind]
    caplog.set_level(logging.INFO, "cct")
    database.sql(fault)
    try:
        assert UNREAD in await get(client, "/", 503)
        assert (await get(client, "/ready", 503)).startswith(f"not ready: {kind}: ")
    finally:
        database.sql(repair)
    await get(client, "/")
    assert_one_outage(caplog.messages, kind)


async def test_null_is_an_empty_cell(client: Client, database: PrivateDatabase) -> None:
    make_table(database, "id INT, name TEXT, email TEXT", "1, NULL, NULL")
    assert '<tr><td>1</td><th scope="row"></th><td></td></tr>' in await get(client, "/")
    page = await (await client.get("/", headers=JSON)).json()
    assert page["accounts"] == [{"id": 1, "name": "", "email": ""}]
    assert await get(client, "/ready") == "ready\n"


@pytest.mark.parametrize(
    "columns",
    [
        "id INT, name BLOB, email TEXT",
        "id INT, name TEXT, email BLOB",
        "id VARCHAR(20), name TEXT, email TEXT",
        "id DECIMAL(20), name TEXT, email TEXT",
        "id DOUBLE, name TEXT, email TEXT",
    ],
)
async def test_column_of_another_type_is_a_503(
    client: Client, database: PrivateDatabase, columns: str
) -> None:
    make_table(database, columns, "1, 'Ada', 'ada@example.com'")
    assert UNREAD in await get(client, "/", 503)
    assert UNREAD in await get(client, "/", 503, JSON)
    assert (await get(client, "/ready", 503)).startswith("not ready: wrong type: ")
    assert await get(client, "/health") == "healthy\n"


@pytest.fixture
def latin_database(database: PrivateDatabase) -> Iterator[PrivateDatabase]:
    """Yield a database that sends Latin-1 instead of UTF-8."""
    database.sql("SET GLOBAL init_connect = 'SET character_set_results = latin1'")
    yield database
    database.sql("SET GLOBAL init_connect = ''")


async def test_text_that_cannot_be_decoded_is_a_503(
    client: Client, latin_database: PrivateDatabase
) -> None:
    for _ in range(3):
        assert UNREAD in await get(client, "/", 503)
        assert (await get(client, "/ready", 503)).startswith("not ready: wrong type: ")
    assert await get(client, "/health") == "healthy\n"


async def test_text_that_cannot_be_decoded_spares_other_pages(
    client: Client, latin_database: PrivateDatabase
) -> None:
    latin_database.sql("UPDATE cct.accounts SET name = IF(id = 120, 'Björn', 'Ada')")
    for _ in range(3):
        assert UNREAD in await get(client, "/?after=100", 503)
        assert len(ids(await get(client, "/"))) == 50


async def test_long_value_is_cut(client: Client, database: PrivateDatabase) -> None:
    columns = "id INT, name LONGTEXT, email LONGTEXT"
    make_table(database, columns, "1, REPEAT('ä', 300), REPEAT('b', 2000000)")
    page = await (await client.get("/", headers=JSON)).json()
    assert page["accounts"] == [{"id": 1, "name": "ä" * 254, "email": "b" * 254}]


def test_user_of_the_server_can_only_select(database: PrivateDatabase) -> None:
    grants = [grant for (grant,) in database.sql("SHOW GRANTS FOR app")]
    rights = {grant.partition(" TO ")[0] for grant in grants}
    assert rights == {"GRANT USAGE ON *.*", "GRANT SELECT ON `cct`.*"}
    assert "GRANT OPTION" not in str(grants)
    with pytest.raises(MySQLError, match="denied"):
        database.sql("DELETE FROM accounts", user="app")


async def test_database_refuses_a_login_in_the_clear(
    make_client: MakeClient, database: PrivateDatabase
) -> None:
    client = await make_client(database.env("app") | {"DB_TLS": "disabled"})
    refusal = await get(client, "/ready", 503)
    assert refusal.startswith("not ready: ")
    assert "certificate" not in refusal
    assert re.search("access denied|cryptography", refusal)  # in MariaDB, in MySQL


async def test_database_is_verified_where_asked(
    make_client: MakeClient, database: PrivateDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    verify = database.env("app") | {"DB_TLS": "verify-identity"}
    client = await make_client(verify)
    assert "certificate verify failed" in await get(client, "/ready", 503)
    monkeypatch.setenv("SSL_CERT_FILE", f"{database.folder}/cert.pem")
    client = await make_client(verify)
    assert await get(client, "/ready") == "ready\n"
