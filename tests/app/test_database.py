"""The database: its faults, its types, its character set, its users."""

import html
import json
import re
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from socketserver import BaseRequestHandler, ThreadingTCPServer
from threading import Event, Thread

import pytest
from asyncmy.errors import MySQLError

import seed
import server
from settings import Settings
from tests.app.conftest import JSON, Client, MakeClient, StartServer, fetch, server_with
from tools.private_database import PrivateDatabase, run_in_thread

UNREAD = "The accounts cannot be read."
NO_ANSWER = "The database does not answer."
FOUND = "The accounts can be read again."


def make_table(database: PrivateDatabase, columns: str, values: str) -> None:
    """Replace the table by one with other columns; add one account."""
    database.sql("DROP TABLE cct.accounts")
    database.sql(f"CREATE TABLE cct.accounts ({columns}) CHARACTER SET utf8mb4")
    database.sql(f"INSERT INTO cct.accounts VALUES ({values})")


# Faults


async def assert_no_answer(client: Client) -> None:
    """Assert that the server says that its database does not answer, and stays healthy."""
    async with client.get("/") as response:
        assert response.status == 503
        assert response.headers["Retry-After"] == "2"
        page = await response.text()
    assert f'<p id="message">{NO_ANSWER}</p>' in page
    assert '<dd id="database">error</dd>' in page
    answer = json.loads(await fetch(client, "/", 503, accept=JSON))
    assert answer["error"] == NO_ANSWER
    assert answer["accounts"] == []
    assert (await fetch(client, "/ready", 503)).startswith(f"not ready: {NO_ANSWER} ")
    assert await fetch(client, "/health") == "healthy\n"


def assert_one_outage(sentence: str) -> None:
    """Assert that the log has one line for the fault, and one for its end."""
    lost, found = server.log_lines
    assert f" UTC {sentence} " in lost
    assert found.endswith(f" UTC {FOUND}\n")


@pytest.mark.parametrize("fault", [PrivateDatabase.stopped, PrivateDatabase.hanging])
@pytest.mark.parametrize("is_connected", [False, True])
async def test_lost_database_is_found_again(
    make_client: MakeClient,
    database: PrivateDatabase,
    is_connected: bool,
    fault: Callable[[PrivateDatabase], AbstractContextManager[None]],
) -> None:
    client = await make_client(database.env("app") | {"DB_TIMEOUT": "0.5"})
    if is_connected:  # if not, the database comes after the server
        await fetch(client, "/")
    with fault(database):
        await assert_no_answer(client)
    await fetch(client, "/")
    assert_one_outage(NO_ANSWER)


FAULTS = {
    "doesn't exist": (
        "RENAME TABLE cct.accounts TO cct.gone",
        "RENAME TABLE cct.gone TO cct.accounts",
    ),
    "Unknown column 'email'": (
        "ALTER TABLE cct.accounts RENAME COLUMN email TO mail",
        "ALTER TABLE cct.accounts RENAME COLUMN mail TO email",
    ),
    "denied": (
        "REVOKE SELECT ON cct.* FROM app",
        "GRANT SELECT ON cct.* TO app",
    ),
}


@pytest.mark.parametrize("reason", FAULTS)
async def test_error_of_the_database_is_named(
    client: Client, database: PrivateDatabase, reason: str
) -> None:
    fault, repair = FAULTS[reason]
    database.sql(fault)
    try:
        assert UNREAD in await fetch(client, "/", 503)
        told = await fetch(client, "/ready", 503)
        assert told.startswith(f"not ready: {UNREAD} ")
        assert reason in told
    finally:
        database.sql(repair)
    await fetch(client, "/")
    assert_one_outage(UNREAD)


# Types


async def test_null_is_an_empty_cell(client: Client, database: PrivateDatabase) -> None:
    make_table(database, "id INT, name TEXT, email TEXT", "1, NULL, NULL")
    assert '<tr><td>1</td><th scope="row"></th><td></td></tr>' in await fetch(client, "/")
    page = json.loads(await fetch(client, "/", accept=JSON))
    assert page["accounts"] == [{"id": 1, "name": "", "email": ""}]


# By the columns of a table: values, and how the page shows them.
TYPES = {
    "id INT, name BLOB, email DATE": ("7, 'Bjö', '2026-12-24'", ("7", "Bjö", "2026-12-24")),
    "id DECIMAL(20), name BINARY(2), email DOUBLE": ("7, X'41FF', 1.5", ("7", "A\ufffd", "1.5")),
    "id DOUBLE, name BIT(8), email SET('a', 'b')": ("7, 65, 'a,b'", ("7.0", "A", "a,b")),
    "id VARCHAR(20), name JSON, email YEAR": ("'7<b>', '[1]', 2026", ("7<b>", "[1]", "2026")),
}


@pytest.mark.parametrize("columns", TYPES)
async def test_value_of_another_type_is_text(
    client: Client, database: PrivateDatabase, columns: str
) -> None:
    values, shown = TYPES[columns]
    make_table(database, columns, values)
    id, name, email = [html.escape(text) for text in shown]
    row = f'<tr><td>{id}</td><th scope="row">{name}</th><td>{email}</td></tr>'
    assert row in await fetch(client, "/")
    (account,) = json.loads(await fetch(client, "/", accept=JSON))["accounts"]
    assert tuple(str(value) for value in account.values()) == shown


async def test_long_value_is_cut(client: Client, database: PrivateDatabase) -> None:
    columns = "id INT, name LONGTEXT, email LONGTEXT"
    make_table(database, columns, "1, REPEAT('ä', 300), REPEAT('b', 2000000)")
    page = json.loads(await fetch(client, "/", accept=JSON))
    assert page["accounts"] == [{"id": 1, "name": "ä" * 254, "email": "b" * 254}]


# Character sets


@contextmanager
def handshake_is_ignored(database: PrivateDatabase) -> Iterator[None]:
    """Start the database with Latin-1, whatever a client says when it connects."""
    database.stop()
    database.start("--skip-character-set-client-handshake", "--character-set-server=latin1")
    yield
    database.stop()
    database.start()


@contextmanager
def handshake_is_overruled(database: PrivateDatabase) -> Iterator[None]:
    """Let the database set each connection of an ordinary user to Latin-1."""
    database.sql("SET GLOBAL init_connect = 'SET NAMES latin1'")
    yield
    database.sql("SET GLOBAL init_connect = ''")


@pytest.mark.parametrize("latin", [handshake_is_ignored, handshake_is_overruled])
async def test_character_set_of_the_database_changes_no_name(
    make_client: MakeClient,
    empty_database: PrivateDatabase,
    latin: Callable[[PrivateDatabase], AbstractContextManager[None]],
) -> None:
    name = "Björn Brontë"
    with latin(empty_database):
        run_in_thread(seed.seed(Settings(empty_database.env("seeder"))))
        ((stored,),) = empty_database.sql("SELECT HEX(name) FROM cct.accounts WHERE id = 2")
        assert bytes.fromhex(stored).decode() == name
        client = await make_client(empty_database.env("app"))
        assert f'<th scope="row">{name}</th>' in await fetch(client, "/")


# Idle connections


class Balancer(ThreadingTCPServer):
    """A TCP proxy before the database. It can forget its connections without a word."""

    daemon_threads = True

    def __init__(self, database: PrivateDatabase) -> None:
        super().__init__(("127.0.0.1", 0), Relay)
        self.database = ("127.0.0.1", database.port)
        self.forgotten = Event()

    def forget(self) -> None:
        """Let the connections that there are lead nowhere."""
        self.forgotten.set()
        self.forgotten = Event()


class Relay(BaseRequestHandler):
    """A connection through the balancer."""

    server: Balancer

    def handle(self) -> None:
        forgotten = self.server.forgotten
        with socket.create_connection(self.server.database) as database:
            other = {self.request: database, database: self.request}
            while True:
                ready, _, _ = select.select([self.request, database], [], [])
                data = ready[0].recv(65536)
                if not data:
                    return
                if not forgotten.is_set():
                    other[ready[0]].sendall(data)


@contextmanager
def running_balancer(database: PrivateDatabase) -> Iterator[Balancer]:
    with Balancer(database) as balancer:
        Thread(target=balancer.serve_forever).start()
        try:
            yield balancer
        finally:
            balancer.shutdown()


def test_connection_that_a_balancer_forgot_is_replaced(
    database: PrivateDatabase, start_server: StartServer
) -> None:
    """MAX_IDLE is 1 s here, instead of 60 s. Waiting for a goodbye would take DB_TIMEOUT."""
    with running_balancer(database) as balancer:
        port = balancer.server_address[1]
        server = start_server(program=server_with(MAX_IDLE=1), DB_PORT=str(port))
        for _ in range(2):
            assert server.get()[0] == 200
            balancer.forget()
            time.sleep(1)  # idle
        assert server.get()[0] == 200
        assert len(server.events()) == 2, server.events()  # no fault


# Users and certificates


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
    refusal = await fetch(client, "/ready", 503)
    assert re.search("Access denied|cryptography", refusal)  # in MariaDB, in MySQL


async def test_database_is_verified_where_asked(
    make_client: MakeClient, database: PrivateDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The certificate has no authority key identifier, which Python 3.13 would refuse."""
    verify = database.env("app") | {"DB_TLS": "verify-identity"}
    client = await make_client(verify)
    assert "certificate verify failed" in await fetch(client, "/ready", 503)
    monkeypatch.setenv("SSL_CERT_FILE", f"{database.folder}/authority.pem")
    client = await make_client(verify)
    assert await fetch(client, "/ready") == "ready\n"
