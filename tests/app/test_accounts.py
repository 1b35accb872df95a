"""The page of accounts: its links, its forms, its files."""

import json
import re
from string import Template

import pytest

import server
from server import MAX_ID
from tests.app.conftest import HTML, JSON, Client, fetch
from tools import ROOT
from tools.private_database import PrivateDatabase


def ids(page: str) -> list[int]:
    """Return the ids of the accounts in a page."""
    return [int(id) for id in re.findall(r"<tr><td>(\d+)</td>", page)]


def link(page: str, text: str) -> str:
    """Return the target of a link in a page; empty if the page has no such link."""
    match = re.search(rf'<a rel="\w+" href="\./([^"]*)">{text}</a>', page)
    return f"/{match[1]}" if match else ""


async def test_first_page_shows_the_facts_and_fifty_accounts(client: Client) -> None:
    page = await fetch(client, "/")
    assert ids(page) == list(range(1, 51))
    assert "Accounts from id 1 to id 50" in page
    first_lines = "\n".join(page.splitlines()[:30])  # what curl shows first
    assert '<dd id="health">healthy</dd>' in first_lines
    assert f'<dd id="container">{server.CONTAINER}</dd>' in first_lines
    assert f'<dd id="started">{server.STARTED}</dd>' in first_lines
    assert '<dd id="database">answers</dd>' in first_lines
    assert '<th scope="row">Björn Brontë</th><td>account2@example.com</td>' in first_lines


async def test_links_lead_through_all_accounts_and_to_the_first(
    client: Client, database: PrivateDatabase
) -> None:
    """Each page is full, although accounts were deleted."""
    database.sql("DELETE FROM cct.accounts WHERE id BETWEEN 10 AND 20")
    first = await fetch(client, "/")
    second = await fetch(client, link(first, "Next"))
    third = await fetch(client, link(second, "Next"))
    assert ids(first) == [*range(1, 10), *range(21, 62)]
    assert ids(second) == list(range(62, 112))
    assert ids(third) == list(range(112, 121))
    assert link(first, "First") == link(third, "Next") == ""
    assert await fetch(client, link(third, "First")) == first


async def test_page_without_a_next_one_has_no_link(client: Client) -> None:
    assert link(await fetch(client, "/?after=69"), "Next") == "/?after=119"
    assert link(await fetch(client, "/?after=70"), "Next") == ""
    page = await fetch(client, f"/?after={MAX_ID}")
    assert "There are no accounts after this id." in page
    assert link(page, "First") == "/"


async def test_empty_table_names_the_seeder(client: Client, database: PrivateDatabase) -> None:
    database.sql("DELETE FROM cct.accounts")
    assert "There are no accounts yet. Run the seeder." in await fetch(client, "/")


async def test_bad_after_is_refused_with_a_sentence(client: Client) -> None:
    sentence = "after must be given once, as a whole number from 0 to 9223372036854775807.\n"
    for after in ("", "x", "-1", "1.5", "٣", "1&after=2", MAX_ID + 1, "9" * 5000):
        assert await fetch(client, f"/?after={after}", 400) == sentence


async def test_page_is_json_where_only_json_is_accepted(client: Client) -> None:
    page = json.loads(await fetch(client, "/?after=50", accept=JSON))
    accounts = page.pop("accounts")
    assert len(accounts) == 50
    assert accounts[0] == {"id": 51, "name": "Chloé Nguyễn", "email": "account51@example.com"}
    assert page == {
        "container": server.CONTAINER,
        "started": server.STARTED,
        "reason": "",
        "failed_probes": 0,
        "probe_age": None,
        "error": "",
        "next": 100,
    }
    del page["next"]
    assert page == json.loads(await fetch(client, "/state"))  # what an open page asks for
    assert (await fetch(client, "/", accept=f"{HTML},{JSON}")).startswith("<!doctype html>")


async def test_page_loads_its_files_from_the_server_alone(client: Client) -> None:
    """The paths are relative: a proxy may serve the page below a path of its own."""
    files = re.findall(r'(?:href|src)="(page/[\w.]+)"', await fetch(client, "/"))
    assert files == ["page/icon.svg", "page/page.css", "page/page.js"]
    for file in files:
        assert await fetch(client, f"/{file}") == (ROOT / file).read_text()


@pytest.mark.parametrize("path", ["/", "/page/page.js", "/nothing"])
async def test_headers_forbid_what_the_page_does_not_need(client: Client, path: str) -> None:
    async with client.get(path) as response:
        headers = response.headers
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
    assert "Traceback" not in await fetch(client, "/", 500)
    assert "KeyError: 'mistake'" in caplog.text
    assert server.log_lines == []
    assert await fetch(client, "/ready") == "ready\n"
