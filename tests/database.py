"""A private database server, MySQL or MariaDB, for the tests, the bench and `make local`."""

import asyncio
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import asyncmy
from asyncmy.cursors import Cursor

from database import Rows
from settings import Settings
from tests.helpers import ROOT, free_port


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command and return its output; exit with that if it fails."""
    done = subprocess.run(command, cwd=cwd, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        raise SystemExit(f"{command[0]} failed: {done.stdout}")
    return done.stdout


def server_program() -> str:
    """Return the path of a database server, DATABASE_SERVER first; exit with a message if there is none."""
    for name in (os.environ.get("DATABASE_SERVER") or "mysqld", "mysqld", "mariadbd"):
        if program := shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin"):
            return program
    raise SystemExit("There is no mysqld and no mariadbd: install a MySQL or MariaDB server.")


class DatabaseServer:
    """A MySQL or MariaDB server on 127.0.0.1, with its data, users and certificate in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self.passwords = {user: secrets.token_hex(8) for user in ("root", "app", "seeder")}
        self.options = [f"--datadir={directory}/data", *(["--user=root"] if os.geteuid() == 0 else [])]
        self.program = server_program()
        self.process: subprocess.Popen[bytes] | None = None
        certificate = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -keyout key.pem -out cert.pem -subj /CN=cct"
        run(*certificate.split(), "-addext", "subjectAltName=IP:127.0.0.1", cwd=directory)
        if "MariaDB" in run(self.program, "--version", cwd=directory):
            run("mariadb-install-db", "--no-defaults", *self.options, cwd=directory)
        else:
            run(self.program, "--no-defaults", "--initialize-insecure", *self.options, cwd=directory)
        # What the server runs when it starts: the statements of users.sh, and root over TCP for the tests.
        statements = (ROOT / "users.sh").read_text().partition("<<SQL\n")[2].removesuffix("SQL\n")
        for user, password in self.passwords.items():
            statements = statements.replace(f"$(cat /run/secrets/{user}/password)", password)
        assert "$" not in statements, "users.sh has more to fill in than passwords"
        (directory / "users.sql").write_text(
            f"CREATE DATABASE IF NOT EXISTS cct CHARACTER SET utf8mb4;\n{statements}"
            f"CREATE USER IF NOT EXISTS root@'127.0.0.1' IDENTIFIED BY '{self.passwords['root']}';\n"
            "GRANT ALL ON *.* TO root@'127.0.0.1' WITH GRANT OPTION;\n"
        )

    def start(self, *options: str) -> None:
        """Start the server and wait until it takes connections; exit with its log if it ends instead."""
        log = self.directory / "log"
        command = [
            *(self.program, "--no-defaults", *self.options, f"--port={self.port}", "--bind-address=127.0.0.1"),
            *(f"--socket={self.directory}/socket", f"--init-file={self.directory}/users.sql", "--skip-name-resolve"),
            *("--ssl-cert=../cert.pem", "--ssl-key=../key.pem", *options),
            f"--secure-file-priv={self.directory}",  # MySQL's own folder for that may be missing
            "--loose-mysqlx=OFF",  # it would listen on a port that is the same for all
        ]
        with log.open("wb") as file:  # in a session of its own: Ctrl-C is for the program that stops it
            self.process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
        while "ready for connections" not in log.read_text():
            if self.process.poll() is not None:
                raise SystemExit(f"{self.program} ended: {log.read_text()}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop the server if it runs, and wait for its end."""
        if self.process:
            self.process.terminate()
            self.process.wait()

    def env(self, user: str) -> dict[str, str]:
        """Return the settings of a program that logs in as a user."""
        password = self.passwords[user]
        return {"DB_HOST": "127.0.0.1", "DB_PORT": str(self.port), "DB_USER": user, "DB_PASSWORD": password}

    def connections(self, user: str = "app", state: str = "%") -> set[int]:
        """Return the ids of a user's connections that are in a state."""
        select = "SELECT id FROM information_schema.processlist WHERE user = %s AND IFNULL(state, '') LIKE %s"
        return {id for (id,) in self.sql(select, user, state)}

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Give a context in which the server is stopped in its tracks: it takes connections, and never answers."""
        assert self.process
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    @asynccontextmanager
    async def cursor(self, user: str = "root") -> AsyncIterator[Cursor]:
        """Give a cursor of a connection of a user."""
        arguments = Settings.read(self.env(user)).connect_arguments()
        connection = await asyncmy.connect(autocommit=True, **arguments)
        try:
            yield connection.cursor()
        finally:
            await connection.ensure_closed()  # before the loop ends, after an error, too

    def sql(self, statement: str, *parameters: object, user: str = "root") -> Rows:
        """Execute a statement as a user and return its rows, in a thread: an event loop may be running."""

        async def execute() -> Rows:
            async with self.cursor(user) as cursor:
                await cursor.execute(statement, parameters)
                return tuple(await cursor.fetchall())

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, execute()).result()


@contextmanager
def private_database() -> Iterator[DatabaseServer]:
    """Give a database server that runs, and leave nothing of it behind."""
    with tempfile.TemporaryDirectory(prefix="cct-") as directory:
        database = DatabaseServer(Path(directory))
        try:
            database.start()
            yield database
        finally:
            database.stop()
