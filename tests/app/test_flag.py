"""The flag: who may set it, where it shows, which probes are counted."""

import json
import re

import pytest

import server
from tests.app.conftest import HTML, JSON, Client, MakeClient, fetch
from tools.private_database import PrivateDatabase


async def test_flag_shows_in_health_readiness_page_and_log(client: Client) -> None:
    assert await fetch(client, "/health") == "healthy\n"
    assert await fetch(client, "/ready") == "ready\n"
    told = await fetch(client, "/make-unhealthy")
    assert re.fullmatch(r"unhealthy since .* UTC: GET /make-unhealthy from 127\.0\.0\.1\n", told)
    assert await fetch(client, "/make-unhealthy") == told  # it changes nothing
    assert await fetch(client, "/health", 503) == told
    assert await fetch(client, "/ready", 503) == told
    assert json.loads(await fetch(client, "/", accept=JSON))["reason"] == told.strip()
    page = await fetch(client, "/")
    assert '<dd id="health">unhealthy</dd>' in page
    assert f'<dd id="reason">{told.strip()}</dd>' in page
    (line,) = server.log_lines
    assert line.endswith(" UTC made unhealthy by GET /make-unhealthy from 127.0.0.1\n")


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_browser_that_sets_the_flag_is_led_to_the_page(client: Client, method: str) -> None:
    """The address is relative: a proxy may serve the page below a path of its own."""
    headers = {"Accept": f"{HTML},*/*"}
    async with client.request(
        method, "/make-unhealthy", headers=headers, allow_redirects=False
    ) as response:
        assert response.status == 303
        assert response.headers["Location"] == "./"
    assert f"{method} /make-unhealthy" in await fetch(client, "/health", 503)


async def test_request_in_advance_does_not_set_the_flag(client: Client) -> None:
    """A browser loads pages in advance that a user may want. HEAD sets nothing, either."""
    sentence = "/make-unhealthy takes no requests in advance.\n"
    for purpose in ("prefetch", "prefetch;prerender"):
        assert await fetch(client, "/make-unhealthy", 403, sec_purpose=purpose) == sentence
    await fetch(client, "/make-unhealthy", 405, "HEAD")
    await fetch(client, "/health")


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_page_of_another_site_cannot_set_the_flag(client: Client, method: str) -> None:
    """Over plain HTTP, browsers send Sec-Fetch-Site only to localhost."""
    for headers in (
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site", "origin": "http://127.0.0.1"},
        {"origin": "http://evil.example"},
        {"origin": "http://[::1"},
        {"origin": "null"},
        {"referer": "http://evil.example/127.0.0.1"},
    ):
        refusal = await fetch(client, "/make-unhealthy", 403, method, **headers)
        assert refusal == (
            "/make-unhealthy takes no requests from other sites. "
            "A proxy must forward Host, with the port.\n"
        )
    await fetch(client, "/health")


@pytest.mark.parametrize("kind", ["same-origin", "none", "plain HTTP"])
async def test_own_page_and_typed_address_set_the_flag(client: Client, kind: str) -> None:
    page = str(client.make_url("/"))
    headers = {"sec_fetch_site": kind}
    if kind == "plain HTTP":
        headers = {"origin": page.rstrip("/"), "referer": page}
    await fetch(client, "/make-unhealthy", 200, "GET", **headers)
    await fetch(client, "/health", 503)


async def test_make_unhealthy_can_be_switched_off(
    make_client: MakeClient, database: PrivateDatabase
) -> None:
    client = await make_client(MAKE_UNHEALTHY="off")
    for method in ("GET", "POST"):
        await fetch(client, "/make-unhealthy", 404, method)
    await fetch(client, "/health")
    assert "<button>" not in await fetch(client, "/")


async def probes(client: Client) -> tuple[int, int | None]:
    """Return the number of failed probes, and the age of the last probe."""
    state = json.loads(await fetch(client, "/", accept=JSON))
    return state["failed_probes"], state["probe_age"]


async def test_probe_is_seen_and_counted_if_it_failed(client: Client) -> None:
    await fetch(client, "/health", user_agent="curl/8.5.0")  # no probe
    assert await probes(client) == (0, None)
    await fetch(client, "/health", user_agent="cct-probe")
    assert await probes(client) == (0, 0)
    assert '<dd id="probe">0 s ago</dd>' in await fetch(client, "/")
    await fetch(client, "/make-unhealthy")
    for _ in range(2):
        await fetch(client, "/health", 503, user_agent="cct-probe")
    await fetch(client, "/health", 503, user_agent="kube-probe/1.36")  # readiness
    assert await probes(client) == (2, 0)
