"""The flag: who may set it, where it shows, which probes are counted."""

import json
import re

import pytest

import server
from tests.app.conftest import HTML, JSON, Client, MakeClient, fetch
from tools.private_database import PrivateDatabase


async def test_flag_shows_in_health_readiness_and_page(client: Client) -> None:
    assert await fetch(client, "/health") == "healthy\n"
    assert await fetch(client, "/ready") == "ready\n"
    told = await fetch(client, "/make-unhealthy")
    assert re.fullmatch(r"unhealthy since .* UTC: GET /make-unhealthy from 127\.0\.0\.1\n", told)
    assert await fetch(client, "/health", 503) == told
    assert await fetch(client, "/ready", 503) == told
    assert json.loads(await fetch(client, "/", accept=JSON))["reason"] == told.strip()
    page = await fetch(client, "/")
    assert '<dd id="health" class="unhealthy">unhealthy</dd>' in page
    assert f'<dd id="reason">{told.strip()}</dd>' in page


async def test_flag_is_set_and_logged_once(client: Client) -> None:
    first = await fetch(client, "/make-unhealthy")
    assert await fetch(client, "/make-unhealthy") == first
    (line,) = server.log_lines
    assert line.endswith(" UTC made unhealthy by GET /make-unhealthy from 127.0.0.1\n")


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_browser_that_sets_the_flag_is_led_to_the_page(client: Client, method: str) -> None:
    browser = {"Accept": f"{HTML},*/*"}
    async with client.request(
        method, "/make-unhealthy", headers=browser, allow_redirects=False
    ) as response:
        assert response.status == 303
        assert response.headers["Location"] == "./"
    assert f"{method} /make-unhealthy" in await fetch(client, "/health", 503)


async def test_head_does_not_set_the_flag(client: Client) -> None:
    async with client.head("/make-unhealthy") as response:
        assert response.status == 405
    await fetch(client, "/health")


async def test_request_in_advance_does_not_set_the_flag(client: Client) -> None:
    """A browser loads pages in advance that a user may want."""
    sentence = "/make-unhealthy takes no requests in advance.\n"
    for purpose in ("prefetch", "prefetch;prerender"):
        assert await fetch(client, "/make-unhealthy", 403, sec_purpose=purpose) == sentence
    await fetch(client, "/health")


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
    async with client.request(method, "/make-unhealthy", headers=headers) as response:
        assert response.status == 403
        assert await response.text() == (
            "/make-unhealthy takes no requests from other sites. "
            "A proxy must forward Host, with the port.\n"
        )
    await fetch(client, "/health")


@pytest.mark.parametrize("site", ["same-origin", "none"])
async def test_own_page_and_typed_address_set_the_flag(client: Client, site: str) -> None:
    await fetch(client, "/make-unhealthy", sec_fetch_site=site)
    await fetch(client, "/health", 503)


async def test_own_page_sets_the_flag_over_plain_http(client: Client) -> None:
    """Over plain HTTP, browsers send Sec-Fetch-Site only to localhost."""
    page = str(client.make_url("/"))
    await fetch(client, "/make-unhealthy", origin=page.rstrip("/"), referer=page)
    await fetch(client, "/health", 503)


async def test_make_unhealthy_can_be_switched_off(
    make_client: MakeClient, database: PrivateDatabase
) -> None:
    client = await make_client(database.env("app") | {"MAKE_UNHEALTHY": "off"})
    nothing = await fetch(client, "/nothing", 404)
    assert await fetch(client, "/make-unhealthy", 404) == nothing
    async with client.post("/make-unhealthy") as response:
        assert response.status == 404
    await fetch(client, "/health")
    assert "<button>" not in await fetch(client, "/")


async def probes(client: Client) -> tuple[int, int | None]:
    """Return the number of failed probes, and the age of the last probe."""
    state = json.loads(await fetch(client, "/", accept=JSON))
    return state["failed_probes"], state["probe_age"]


@pytest.mark.parametrize("agent", ["cct-probeX", "curl/8.5.0", "kube-probe", "Mozilla"])
async def test_other_clients_are_no_probes(client: Client, agent: str) -> None:
    await fetch(client, "/make-unhealthy")
    await fetch(client, "/health", 503, user_agent=agent)
    assert await probes(client) == (0, None)


@pytest.mark.parametrize("agent", ["cct-probe", "kube-probe/1.36"])
async def test_probe_is_seen_and_counted_if_it_failed(client: Client, agent: str) -> None:
    await fetch(client, "/health", 200, user_agent=agent)
    assert await probes(client) == (0, 0)
    assert '<dd id="probe">0 s ago</dd>' in await fetch(client, "/")
    await fetch(client, "/make-unhealthy")
    await fetch(client, "/health", 503, user_agent=agent)
    await fetch(client, "/health", 503, user_agent=agent)
    assert await probes(client) == (2, 0)
