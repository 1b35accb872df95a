"""The server's answers, against a real database."""

import logging
import re
from base64 import b64encode
from string import Template

import pytest
from asyncmy.errors import MySQLError

import server
from database import MAX_ID
from tests.conftest import Client, MakeClient
from tests.database import DatabaseServer
from tests.helpers import free_port

NOWHERE = {
    "DB_HOST": "127.0.0.1",
    "DB_PORT": str(free_port()),
    "DB_USER": "app",
    "DB_PASSWORD": "x",
}


async def get(
    client: Client, path: str, status: int = 200, headers: dict[str, str] | None = None
) -> str:
    """Return the text of an answer that has the status."""
    response = await client.get(path, headers=headers)
    text = await response.text()
    assert response.status == status, text
    return text


def ids(page: str) -> list[int]:
    return [int(id) for id in re.findall(r"<tr><td>(\d+)</td>", page)]


def link(page: str, text: str) -> str | None:
    match = re.search(rf'<a rel="\w+" href="([^"]+)">{text}</a>', page)
    return match and match[1]


async def test_page_shows_the_first_fifty_accounts_the_container_its_start_and_an_icon(
    client: Client,
) -> None:
    page = await get(client, "/")
    assert ids(page) == list(range(1, 51))
    assert '<th scope="row">Björn Brontë</th><td>account2@example.com</td>' in page
    assert f"<dd>{server.CONTAINER}</dd>" in page
    assert f"<dd>{server.STARTED}</dd>" in page
    assert (
        f'<link rel="icon" href="data:image/svg+xml;base64,{b64encode(server.ICON.encode()).decode()}">'
        in page
    )


async def test_links_lead_through_all_accounts_around_deleted_ones_and_back(
    client: Client, database: DatabaseServer
) -> None:
    database.sql("DELETE FROM cct.accounts WHERE id BETWEEN 10 AND 20")
    first = await get(client, "/")
    second = await get(client, link(first, "Next") or "")
    third = await get(client, link(second, "Next") or "")
    assert ids(first) == [*range(1, 10), *range(21, 62)]
    assert [ids(second), ids(third)] == [list(range(62, 112)), list(range(112, 121))]
    assert link(first, "Previous") is None
    assert link(third, "Next") is None
    assert await get(client, link(third, "Previous") or "") == second
    assert ids(await get(client, link(second, "Previous") or "")) == ids(first)


async def test_links_end_with_the_last_account_and_a_page_without_accounts_says_so(
    client: Client, database: DatabaseServer
) -> None:
    assert link(await get(client, "/?after=70"), "Next") is None
    assert link(await get(client, "/?after=69"), "Next") == "/?after=119"
    page = await get(client, f"/?after={MAX_ID}")
    assert "There are no accounts here" in page
    assert link(page, "Previous") == "/?after=70"  # the last 50 of 120
    database.sql("DELETE FROM cct.accounts")
    assert "There are no accounts yet. Run the seeder: <code>docker compose up seeder" in await get(
        client, "/"
    )


BAD = (
    "",
    "x",
    "-1",
    "1.5",
    "1e3",
    "+1",
    "%201",
    "0x10",
    "1_0",
    "٣",
    "%00",
    "1&after=2",
    "1;DROP",
    f"{MAX_ID + 1}",
)


@pytest.mark.parametrize("after", [*BAD, "9" * 5000])
async def test_bad_after_is_refused_with_a_sentence(client: Client, after: str) -> None:
    sentence = "after must be given once, as a whole number from 0 to 9223372036854775807.\n"
    assert await get(client, f"/?after={after}", 400) == sentence


async def test_page_as_json_where_that_alone_is_accepted(client: Client) -> None:
    response = await client.get("/?after=50", headers={"Accept": "application/json"})
    page = await response.json()
    assert [account["id"] for account in page["accounts"]] == list(range(51, 101))
    assert page["accounts"][0] == {
        "id": 51,
        "name": "Chloé Nguyễn",
        "email": "account51@example.com",
    }
    assert (page["previous"], page["next"]) == (0, 100)
    assert (page["container"], page["started"], page["healthy"]) == (
        server.CONTAINER,
        server.STARTED,
        True,
    )
    assert "<table>" in await get(client, "/", headers={"Accept": "text/html,application/json"})


async def test_headers_forbid_what_the_page_does_not_need(client: Client) -> None:
    headers = (await client.get("/")).headers
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"


async def test_health_ready_and_page_say_that_it_is_unhealthy(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    assert await get(client, "/health") == "healthy\n"
    assert await get(client, "/ready") == "ready\n"
    caplog.set_level(logging.INFO, "cct")
    told = await get(client, "/make-unhealthy")
    assert re.fullmatch(r"unhealthy since .* UTC: GET /make-unhealthy from 127\.0\.0\.1\n", told)
    assert await get(client, "/health", 503) == told
    assert await get(client, "/ready", 503) == told
    assert f'<dd class="unhealthy">{told.strip()}</dd>' in await get(client, "/")
    assert await get(client, "/make-unhealthy") == told
    assert caplog.messages == ["made unhealthy by GET /make-unhealthy from 127.0.0.1"]


async def test_failed_probes_of_the_engine_and_the_kubelet_are_counted_and_no_others(
    client: Client,
) -> None:
    for agent, count in (
        ("cct-probe", 0),
        ("cct-probe", 1),
        ("kube-probe/1.36", 2),
        ("curl/8.5.0", 2),
    ):
        await get(client, "/health", 503 if server.unhealthy else 200, {"User-Agent": agent})
        page = await client.get("/", headers={"Accept": "application/json"})
        assert (await page.json())["failed_probes"] == count
        await get(client, "/make-unhealthy")


async def test_head_changes_nothing_and_post_leads_a_browser_back(client: Client) -> None:
    assert (await client.head("/make-unhealthy")).status == 405
    assert await get(client, "/health") == "healthy\n"
    response = await client.post(
        "/make-unhealthy", headers={"Accept": "text/html"}, allow_redirects=False
    )
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
async def test_page_of_another_site_cannot_set_the_flag(
    client: Client, method: str, headers: dict[str, str]
) -> None:
    response = await client.request(method, "/make-unhealthy", headers=headers)
    assert response.status == 403
    assert await response.text() == "/make-unhealthy does not take requests from other sites.\n"
    assert await get(client, "/health") == "healthy\n"


async def test_own_page_and_a_typed_address_can_set_the_flag(client: Client) -> None:
    own = str(client.make_url("/"))
    plain_http = {"Origin": own.rstrip("/"), "Referer": own}
    for headers in ({"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}, plain_http, {}):
        server.unhealthy = ""
        await get(client, "/make-unhealthy", headers=headers)
        await get(client, "/health", 503)


async def test_make_unhealthy_can_be_switched_off(
    make_client: MakeClient, database: DatabaseServer
) -> None:
    client = await make_client(database.env("app") | {"MAKE_UNHEALTHY": "off"})
    assert "switched off" in await get(client, "/make-unhealthy", 403)
    assert await get(client, "/health") == "healthy\n"
    assert "<button>" not in await get(client, "/")


async def test_other_paths_other_methods_and_bodies_are_refused_with_a_sentence(
    client: Client,
) -> None:
    assert (
        await get(client, "/nothing", 404)
        == "There is nothing here. Try /, /health, /ready or /make-unhealthy.\n"
    )
    response = await client.delete("/")
    assert (response.status, await response.text()) == (
        405,
        "DELETE is not allowed here, but GET and HEAD.\n",
    )
    response = await client.post("/make-unhealthy", data=b"x")
    assert (response.status, await response.text()) == (413, "No request needs a body here.\n")
    assert response.headers["Connection"] == "close"
    assert await get(client, "/health") == "healthy\n"


OWN = ",127.0.0.1,127.0.0.1:5000,[::1],[::1]:80,10.0.0.7,localhost:80,example.org,CCT.example.org:80".split(
    ","
)
FOREIGN = "evil.example evil.example:80 localhost.evil.example 127.0.0.1.evil.example".split()


@pytest.mark.parametrize("host", [*OWN, *FOREIGN])
async def test_only_allowed_names_and_addresses_are_answered(
    make_client: MakeClient, host: str
) -> None:
    client = await make_client(NOWHERE | {"ALLOWED_HOSTS": "example.org, cct.example.org"})
    status = 421 if host in FOREIGN else 200
    for path in ("/health", "/make-unhealthy"):
        text = await get(client, path, status, {"Host": host})
        assert (text == "The server is not known by this name: see ALLOWED_HOSTS.\n") == (
            status == 421
        )
    assert bool(server.unhealthy) == (status == 200)
    await get(
        await make_client(NOWHERE), "/health", headers={"Host": host}
    )  # by default any name is allowed


async def test_database_that_is_lost_before_the_first_page_or_later_is_found(
    client: Client, database: DatabaseServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "cct")
    sentence = "The database does not answer. Try again in a few seconds."
    for _ in range(2):  # without connections, and with connections that are lost
        database.stop()
        response = await client.get("/")
        assert (response.status, response.headers["Retry-After"]) == (503, "2")
        assert sentence in await response.text()
        response = await client.get("/", headers={"Accept": "application/json"})
        assert await response.json() == {"error": sentence}
        assert (await get(client, "/ready", 503)).startswith("not ready: no answer: ")
        assert await get(client, "/health") == "healthy\n"
        database.start()
        assert len(ids(await get(client, "/"))) == 50
        lost, found = caplog.messages
        assert lost.startswith("accounts cannot be read: no answer: ")
        assert found == "accounts can be read again"
        caplog.clear()


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (
            "missing table",
            [
                f"RENAME TABLE cct.{names}"
                for names in ("accounts TO cct.gone", "gone TO cct.accounts")
            ],
        ),
        (
            "missing column",
            [f"ALTER TABLE cct.accounts RENAME COLUMN {c}" for c in ("email TO e", "e TO email")],
        ),
        ("no right", ["REVOKE SELECT ON cct.* FROM app", "GRANT SELECT ON cct.* TO app"]),
    ],
)
async def test_what_the_database_refuses_is_told_apart_from_no_answer(
    client: Client,
    database: DatabaseServer,
    caplog: pytest.LogCaptureFixture,
    kind: str,
    changes: list[str],
) -> None:
    caplog.set_level(logging.INFO, "cct")
    break_, repair = changes
    database.sql(break_)
    try:
        assert "The accounts cannot be read. Try again in a few seconds." in await get(
            client, "/", 503
        )
        assert (await get(client, "/ready", 503)).startswith(f"not ready: {kind}: ")
    finally:
        database.sql(repair)
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


def test_user_of_the_server_can_only_select(database: DatabaseServer) -> None:
    grants = [grant for (grant,) in database.sql("SHOW GRANTS FOR app")]
    assert {grant.partition(" TO ")[0] for grant in grants} == {
        "GRANT USAGE ON *.*",
        "GRANT SELECT ON `cct`.*",
    }
    assert "GRANT OPTION" not in str(grants)
    with pytest.raises(MySQLError, match="denied"):
        database.sql("DELETE FROM accounts", user="app")


async def test_database_is_verified_where_asked_and_refuses_a_login_in_the_clear(
    make_client: MakeClient, database: DatabaseServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    login = database.env("app")
    assert "certificate" not in await get(
        await make_client(login | {"DB_TLS": "disabled"}), "/ready", 503
    )
    verify = login | {"DB_TLS": "verify-identity"}
    assert "certificate verify failed" in await get(await make_client(verify), "/ready", 503)
    monkeypatch.setenv("SSL_CERT_FILE", f"{database.directory}/cert.pem")
    await get(await make_client(verify), "/ready")
