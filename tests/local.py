"""A private, throwaway database server for the tests, and the scenario of docker-compose.yml as plain processes.

`make local` starts database, seeder and server, and heals the server, until Ctrl-C.
"""

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path

ROOT = Path(__file__).parent.parent


def free_port() -> int:
    """Return a TCP port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command and return its output; SystemExit with that where it fails."""
    done = subprocess.run(command, cwd=cwd, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        raise SystemExit(f"{command[0]} failed: {done.stdout}")
    return done.stdout


def server_program() -> str:
    """Return the path of a database server; SystemExit with a sentence where there is none."""
    for name in ("mysqld", "mariadbd"):
        if program := shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin"):
            return program
    raise SystemExit("There is no mysqld and no mariadbd: install a MySQL or MariaDB server.")


class Database:
    """A MySQL or MariaDB server on 127.0.0.1, with its data, users and certificate in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self.passwords = {user: secrets.token_hex(8) for user in ("root", "app", "seeder")}
        self.options = [f"--datadir={directory}/data", *(["--user=root"] if os.geteuid() == 0 else [])]
        self.program = server_program()
        self.process: subprocess.Popen[bytes] | None = None
        self.write_users()
        self.write_certificate()
        if "MariaDB" in run(self.program, "--version", cwd=directory):
            run("mariadb-install-db", "--no-defaults", *self.options, cwd=directory)
        else:
            run(self.program, "--no-defaults", "--initialize-insecure", *self.options, cwd=directory)

    def write_users(self) -> None:
        """Write what the server runs when it starts: the statements of users.sh, and root over TCP for the tests."""
        statements = (ROOT / "users.sh").read_text().partition("<<SQL\n")[2].removesuffix("SQL\n")
        statements = re.sub(
            r"\$\(cat /run/secrets/(\w+)/password\)", lambda match: self.passwords[match[1]], statements
        )
        assert "$" not in statements, "users.sh has more to fill in than passwords"
        (self.directory / "users.sql").write_text(
            f"CREATE DATABASE IF NOT EXISTS cct CHARACTER SET utf8mb4;\n{statements}"
            f"CREATE USER IF NOT EXISTS root@'127.0.0.1' IDENTIFIED BY '{self.passwords['root']}';\n"
            "GRANT ALL ON *.* TO root@'127.0.0.1' WITH GRANT OPTION;\n"
        )

    def write_certificate(self) -> None:
        """Write a self-signed certificate for 127.0.0.1."""
        names = ("-subj", "/CN=cct", "-addext", "subjectAltName=IP:127.0.0.1")
        command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -keyout key.pem -out cert.pem".split()
        run(*command, *names, cwd=self.directory)

    def start(self, *options: str) -> None:
        """Start the server and wait until it takes connections; SystemExit with its log where it does not."""
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(self.program, "--no-defaults", *self.options, f"--port={self.port}", "--bind-address=127.0.0.1"),
                    *(f"--socket={self.directory}/socket", f"--pid-file={self.directory}/pid", "--skip-name-resolve"),
                    *("--ssl-cert=../cert.pem", "--ssl-key=../key.pem", f"--init-file={self.directory}/users.sql"),
                    *(f"--secure-file-priv={self.directory}", *options),  # MySQL's own folder for that may be missing
                ],
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the program that stops it
            )
        while not self.answers():
            if self.process.poll() is not None:
                raise SystemExit(f"{self.program} ended: {(self.directory / 'log').read_text()}")
            time.sleep(0.05)

    def answers(self) -> bool:
        """Tell whether the server greets who connects."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                return bool(connection.recv(1))
        except OSError:
            return False

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Stop the server, where it runs, and wait for its end."""
        if self.process:
            self.process.send_signal(how)
            self.process.wait()
            self.process = None

    def env(self, user: str) -> dict[str, str]:
        """Return the settings with which a program reaches it as a user."""
        password = self.passwords[user]
        return {"DB_HOST": "127.0.0.1", "DB_PORT": str(self.port), "DB_USER": user, "DB_PASSWORD": password}


@contextmanager
def private_database() -> Iterator[Database]:
    """Give a database server that runs, and leave nothing of it behind."""
    with tempfile.TemporaryDirectory(prefix="cct-") as directory:
        database = Database(Path(directory))
        try:
            database.start()
            yield database
        finally:
            database.stop()


def start(program: str, settings: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start server.py or seed.py with settings."""
    return subprocess.Popen([sys.executable, ROOT / program], env=os.environ | settings, start_new_session=True)


def probe(port: int) -> str:
    """Return why the server is unhealthy, or nothing where it is healthy."""
    client = HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        client.request("GET", "/health")
        answer = client.getresponse()
        return "" if answer.status == 200 else answer.read().decode().strip()
    except (OSError, HTTPException) as error:
        return f"no answer: {error}"
    finally:
        client.close()


def stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a process: SIGTERM, and after 10 s SIGKILL."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def serve_and_heal(settings: dict[str, str], port: int) -> None:
    """Run server.py, and restart it when it ends or after three failed probes 5 s apart."""
    while True:
        server = start("server.py", settings)
        try:
            failures = 0
            while failures < 3 and server.poll() is None:
                time.sleep(5)
                reason = probe(port)
                failures = failures + 1 if reason else 0
                if reason:
                    print(f"probe {failures} failed: {reason}", flush=True)
        finally:
            stop(server)
        print("restarting the server", flush=True)


def main() -> None:
    """Run the scenario until SIGINT or SIGTERM."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    port = int(os.environ.get("APP_PORT") or 5000)
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        raise SystemExit(f"Port {port} cannot be had: {error.strerror}. Try APP_PORT=5001 make local.") from None
    try:
        with private_database() as database:
            if start("seed.py", database.env("seeder")).wait():
                raise SystemExit("The seeder failed.")
            print(f"http://localhost:{port} - Ctrl-C ends it", flush=True)
            serve_and_heal(database.env("app") | {"HOST": "127.0.0.1", "PORT": str(port)}, port)
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
