"""The database: its faults, its types, its character set, its users."""

import asyncio
import html
import json
import re
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable
from contextlib import AbstractContextManager, closing

import pytest

import seed
import server
from settings import Settings
from tests.app.conftest import JSON, Client, MakeClient, fetch
from tools.private_database import PrivateDatabase, run_in_thread

NO_ANSWER = "The database does not answer."


# Faults


@pytest.mark.parametrize("fault", [PrivateDatabase.stopped, PrivateDatabase.hanging])
@pytest.mark.parametrize("is_connected", [False, True])
async def test_lost_database_is_found_again(
    make_client: MakeClient,
    database: PrivateDatabase,
    is_connected: bool,
    fault: Callable[[PrivateDatabase], AbstractContextManager[None]],
) -> None:
    client = await make_client(DB_TIMEOUT="0.5")
    if is_connected:  # if not, the database comes after the server
        await fetch(client, "/")
    with fault(database):
        async with client.get("/") as response:
            page = await response.text()
        assert response.status == 503
        assert response.headers["Retry-After"] == "2"
        assert f'<p id="message">{NO_ANSWER}</p>' in page
        assert '<dd id="database">error</dd>' in page
        answer = json.loads(await fetch(client, "/", 503, accept=JSON))
        assert answer["error"] == NO_ANSWER
        assert answer["accounts"] == []
        assert (await fetch(client, "/ready", 503)).startswith(f"not ready: {NO_ANSWER} ")
        assert await fetch(client, "/health") == "healthy\n"
    await fetch(client, "/")
    lost, found = server.log_lines
    assert f" UTC {NO_ANSWER} " in lost
    assert found.endswith(" UTC The accounts can be read again.\n")


# Types


# By a kind: the columns of a table, values, and how the page shows them.
VALUES = {
    "NULL": ("id INT, name TEXT, email TEXT", "7, NULL, NULL", ("7", "", "")),
    "long": (
        "id INT, name LONGTEXT, email LONGTEXT",
        "7, REPEAT('ä', 300), REPEAT('b', 2000000)",
        ("7", "ä" * 254, "b" * 254),
    ),
    "bytes": (
        "id DECIMAL(20), name BLOB, email BINARY(2)",
        "7, 'Bjö', X'41FF'",
        ("7", "Bjö", "A\ufffd"),
    ),
    "numbers": (
        "id DOUBLE, name BIT(8), email DATE",
        "7, 65, 20261224",
        ("7.0", "A", "2026-12-24"),
    ),
    "text": (
        "id VARCHAR(20), name JSON, email YEAR",
        "'7<b>', '[1]', 2026",
        ("7<b>", "[1]", "2026"),
    ),
}


@pytest.mark.parametrize("kind", VALUES)
async def test_every_value_is_text(client: Client, database: PrivateDatabase, kind: str) -> None:
    columns, values, shown = VALUES[kind]
    database.sql("DROP TABLE cct.accounts")
    database.sql(f"CREATE TABLE cct.accounts ({columns}) CHARACTER SET utf8mb4")
    database.sql(f"INSERT INTO cct.accounts VALUES ({values})")
    id, name, email = [html.escape(text) for text in shown]
    row = f'<tr><td>{id}</td><th scope="row">{name}</th><td>{email}</td></tr>'
    assert row in await fetch(client, "/")
    (account,) = json.loads(await fetch(client, "/", accept=JSON))["accounts"]
    assert tuple(str(value) for value in account.values()) == shown


async def test_character_set_of_the_database_changes_no_name(
    make_client: MakeClient, empty_database: PrivateDatabase
) -> None:
    """The database uses Latin-1, whatever a client says when it connects."""
    latin = ("--skip-character-set-client-handshake", "--character-set-server=latin1")
    empty_database.stop()
    empty_database.start(*latin)
    try:
        run_in_thread(seed.seed(Settings(empty_database.env("seeder"))))
        ((stored,),) = empty_database.sql("SELECT HEX(name) FROM cct.accounts WHERE id = 2")
        assert bytes.fromhex(stored).decode() == "Björn Brontë"
        client = await make_client()
        assert '<th scope="row">Björn Brontë</th>' in await fetch(client, "/")
    finally:
        empty_database.stop()
        empty_database.start()


# Idle connections


class Balancer:
    """A TCP proxy before the database. It can forget its connections without a word."""

    def __init__(self, database: PrivateDatabase) -> None:
        self.database = database
        self.forgotten = asyncio.Event()

    async def relay(self, reader: StreamReader, writer: StreamWriter) -> None:
        """Connect a client with the database."""
        forgotten = self.forgotten
        answers, questions = await asyncio.open_connection("127.0.0.1", self.database.port)
        await asyncio.gather(copy(reader, questions, forgotten), copy(answers, writer, forgotten))

    def forget(self) -> None:
        """Let the connections that there are lead nowhere."""
        self.forgotten.set()
        self.forgotten = asyncio.Event()


async def copy(source: StreamReader, target: StreamWriter, forgotten: asyncio.Event) -> None:
    """Copy bytes until the end. Drop them when the connection is forgotten."""
    with closing(target):
        while data := await source.read(65536):
            if not forgotten.is_set():
                target.write(data)


async def test_connection_that_a_balancer_forgot_is_replaced(
    make_client: MakeClient, database: PrivateDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MAX_IDLE is 1 s here, instead of 60 s. Waiting for a goodbye would take DB_TIMEOUT."""
    monkeypatch.setattr("server.MAX_IDLE", 1)
    balancer = Balancer(database)
    listener = await asyncio.start_server(balancer.relay, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    client = await make_client(DB_PORT=str(port))
    for _ in range(3):
        await fetch(client, "/")
        balancer.forget()
        await asyncio.sleep(1)  # idle
    listener.close()
    assert server.log_lines == []  # no fault


# Users and certificates


def test_user_of_the_server_can_only_select(database: PrivateDatabase) -> None:
    grants = [grant for (grant,) in database.sql("SHOW GRANTS FOR app")]
    rights = {grant.partition(" TO ")[0] for grant in grants}
    assert rights == {"GRANT USAGE ON *.*", "GRANT SELECT ON `cct`.*"}
    assert "GRANT OPTION" not in str(grants)


async def test_database_refuses_a_login_in_the_clear(make_client: MakeClient) -> None:
    client = await make_client(DB_TLS="disabled")
    refusal = await fetch(client, "/ready", 503)
    assert re.search("Access denied|cryptography", refusal)  # in MariaDB, in MySQL


async def test_database_is_verified_where_asked(
    make_client: MakeClient, database: PrivateDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The certificate has no authority key identifier, which Python 3.13 would refuse."""
    client = await make_client(DB_TLS="verify-identity")
    assert "certificate verify failed" in await fetch(client, "/ready", 503)
    monkeypatch.setenv("SSL_CERT_FILE", f"{database.folder}/authority.pem")
    client = await make_client(DB_TLS="verify-identity")
    assert await fetch(client, "/ready") == "ready\n"
