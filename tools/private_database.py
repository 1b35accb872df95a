"""A private MySQL or MariaDB server for the tests and `make local`."""

import asyncio
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import asyncmy
from asyncmy.cursors import Cursor

from settings import Settings
from tools import ROOT
from tools.waiting import free_port

T = TypeVar("T")
Rows = tuple[tuple[Any, ...], ...]

REQUEST = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 "
AUTHORITY = REQUEST + "-subj /CN=authority -keyout authority.key -out authority.pem"
# As many private authorities do, this one leaves out the optional authority key identifier.
CERTIFICATE = REQUEST + (
    "-subj /CN=cct -keyout key.pem -out cert.pem -CA authority.pem -CAkey authority.key "
    "-addext subjectAltName=IP:127.0.0.1 -addext authorityKeyIdentifier=none"
)


class PrivateDatabase:
    """A database server on 127.0.0.1. Its data, users and certificate are in its own folder."""

    def __init__(self, folder: Path) -> None:
        """Make the data; exit with a message if that fails, or if there is no database server."""
        self.folder = folder
        self.port = free_port()
        self.passwords = {user: secrets.token_hex(8) for user in ("root", "app", "seeder")}
        self.program = find_server()
        # MariaDB deletes temporary tables when it starts, also those of other servers in /tmp.
        self.options = [f"--datadir={folder}/data", f"--tmpdir={folder}"]
        if os.geteuid() == 0:
            self.options.append("--user=root")
        self.process: subprocess.Popen[bytes] | None = None
        run(AUTHORITY.split(), folder)
        run(CERTIFICATE.split(), folder)
        if "MariaDB" in run([self.program, "--version"], folder):
            run(["mariadb-install-db", "--no-defaults", *self.options], folder)
        else:
            run([self.program, "--no-defaults", "--initialize-insecure", *self.options], folder)
        (folder / "users.sql").write_text(self.statements())

    def statements(self) -> str:
        """Return the SQL for the server's start: the users of users.sh, and root over TCP."""
        text = (ROOT / "db" / "users.sh").read_text()
        users = text.partition("<<SQL\n")[2].partition("SQL\n")[0]
        for user, password in self.passwords.items():
            users = users.replace(f'$(cat "$(password_file {user})")', password)
        assert "$" not in users, "users.sh has more to fill in than passwords"
        return (
            "CREATE DATABASE IF NOT EXISTS cct CHARACTER SET utf8mb4;\n"
            f"{users}"
            "CREATE USER IF NOT EXISTS root@'127.0.0.1'"
            f" IDENTIFIED BY '{self.passwords['root']}';\n"
            "GRANT ALL ON *.* TO root@'127.0.0.1' WITH GRANT OPTION;\n"
        )

    def start(self, *options: str) -> None:
        """Start the server, and wait until it accepts connections; exit with its log if it ends."""
        log = self.folder / "log"
        command = [
            self.program,
            "--no-defaults",
            *self.options,
            "--bind-address=127.0.0.1",
            f"--port={self.port}",
            f"--socket={self.folder}/socket",
            f"--init-file={self.folder}/users.sql",
            "--skip-name-resolve",
            f"--ssl-cert={self.folder}/cert.pem",
            f"--ssl-key={self.folder}/key.pem",
            f"--secure-file-priv={self.folder}",  # MySQL's default folder may be missing
            "--loose-mysqlx=OFF",  # mysqlx would listen on the same port for every server
            *options,
        ]
        with log.open("wb") as file:
            # In its own session, the server gets no Ctrl-C. Our program does, and stops the server.
            self.process = subprocess.Popen(
                command, stdout=file, stderr=file, start_new_session=True
            )
        while "ready for connections" not in log.read_text():
            if self.process.poll() is not None:
                raise SystemExit(f"{self.program} ended: {log.read_text()}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop the server, and wait for its end."""
        if self.process:
            self.process.terminate()
            self.process.wait()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Stop the server for the time of the context."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    def env(self, user: str) -> dict[str, str]:
        """Return the settings for a program that logs in as this user."""
        return {
            "DB_HOST": "127.0.0.1",
            "DB_PORT": str(self.port),
            "DB_USER": user,
            "DB_PASSWORD": self.passwords[user],
        }

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Freeze the server in the context: it accepts connections, but never answers."""
        assert self.process
        self.process.send_signal(signal.SIGSTOP)
        os.waitpid(self.process.pid, os.WUNTRACED)  # all its threads have stopped
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    @asynccontextmanager
    async def cursor(self, user: str = "root") -> AsyncIterator[Cursor]:
        """Connect as a user; yield a cursor."""
        arguments = Settings(self.env(user)).connect_arguments()
        connection = await asyncmy.connect(autocommit=True, **arguments)
        try:
            yield connection.cursor()
        finally:
            await connection.ensure_closed()  # also after an error, before the loop ends

    def sql(self, statement: str, *parameters: object, user: str = "root") -> Rows:
        """Execute a statement as a user, and return its rows."""

        async def execute() -> Rows:
            async with self.cursor(user) as cursor:
                await cursor.execute(statement, parameters)
                return tuple(await cursor.fetchall())

        return run_in_thread(execute())

    def connections(self, user: str = "app", state: str = "%") -> set[int]:
        """Return the ids of a user's connections. `state` is a pattern of LIKE."""
        select = (
            "SELECT id FROM information_schema.processlist "
            "WHERE user = %s AND IFNULL(state, '') LIKE %s"
        )
        return {id for (id,) in self.sql(select, user, state)}


@contextmanager
def private_database() -> Iterator[PrivateDatabase]:
    """Start a database server; stop and delete it at the end."""
    with tempfile.TemporaryDirectory(prefix="cct-") as folder:
        database = PrivateDatabase(Path(folder))
        try:
            database.start()
            yield database
        finally:
            database.stop()


def run_in_thread(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in a thread (the caller may be in an event loop); return its result."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()


def find_server() -> str:
    """Return the path of DATABASE_SERVER, mysqld or mariadbd; exit if there is none."""
    path = f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin"
    for name in (os.environ.get("DATABASE_SERVER") or "mysqld", "mysqld", "mariadbd"):
        if program := shutil.which(name, path=path):
            return program
    raise SystemExit("There is no mysqld and no mariadbd: install a MySQL or MariaDB server.")


def run(command: list[str], folder: Path) -> str:
    """Run a command in a folder, and return its output; exit with the output if it fails."""
    done = subprocess.run(
        command,
        cwd=folder,
        check=False,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if done.returncode:
        raise SystemExit(f"{command[0]} failed: {done.stdout}")
    return done.stdout
