"""The settings of the server and the seeder: every environment variable that they read."""

import ssl
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

Number = TypeVar("Number", int, float)

TIME_FORMAT = "%Y-%m-%d %H:%M:%S UTC"  # in the log and on the page
MAX_PASSWORD = 1024  # bytes


class Settings:
    """The settings with their types, defaults and ranges. README.md says what each one does."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Read all settings; exit with a message that names the first invalid one."""
        env = Environment(environment)
        self.host = env.text("HOST", "0.0.0.0")
        self.port = env.number("PORT", 80, low=1, high=65535)
        self.allowed_hosts = env.text("ALLOWED_HOSTS", "*")  # names, separated by commas or spaces
        self.drain = env.number("DRAIN", 0.0, low=0, high=300)  # seconds
        self.make_unhealthy = env.choice("MAKE_UNHEALTHY", "on", "off")

        self.db_host = env.text("DB_HOST", "db")
        self.db_port = env.number("DB_PORT", 3306, low=1, high=65535)
        self.db_name = env.text("DB_NAME", "cct")
        self.db_user = env.text("DB_USER", "")
        self.db_password = env.text("DB_PASSWORD", "")
        self.db_password_file = env.text("DB_PASSWORD_FILE", "")
        self.db_tls = env.choice("DB_TLS", "required", "verify-identity", "disabled")
        self.db_timeout = env.number("DB_TIMEOUT", 2.0, low=0.1, high=60)  # seconds

        self.seed_accounts = env.number("SEED_ACCOUNTS", 100, low=0, high=100_000_000)
        self.seed_file = env.text("SEED_FILE", "")
        self.seed_wait = env.number("SEED_WAIT", 60.0, low=1, high=3600)  # seconds

        self.check_login()

    def check_login(self) -> None:
        """Exit with a message if the user or the password is missing."""
        if not self.db_user:
            raise SystemExit("DB_USER must name the database user.")
        if (self.db_password == "") == (self.db_password_file == ""):
            raise SystemExit("Exactly one of DB_PASSWORD and DB_PASSWORD_FILE must be set.")
        try:
            self.current_password()
        except OSError as error:
            raise SystemExit(f"DB_PASSWORD_FILE cannot be read: {error}.") from None

    def current_password(self) -> bytes:
        """Return the password; raise OSError if its file cannot be read.

        Each new connection reads the file again, so a rotated password needs no restart.
        """
        if not self.db_password_file:
            return self.db_password.encode()
        file = Path(self.db_password_file)
        if not stat.S_ISREG(file.stat().st_mode):
            raise OSError(f"{file} is not a regular file")  # a pipe could block the server for ever
        with file.open("rb") as opened:
            password = opened.read(MAX_PASSWORD + 1).rstrip(b"\r\n")
        if not 0 < len(password) <= MAX_PASSWORD:
            raise OSError(f"{file} must hold a password of 1 to {MAX_PASSWORD} bytes")
        return password

    def connect_arguments(self) -> dict[str, Any]:
        """Return the arguments of asyncmy.connect and asyncmy.Pool."""
        return {
            "host": self.db_host,
            "port": self.db_port,
            "database": self.db_name,
            "user": self.db_user,
            "password_creator": self.current_password,
            "ssl": tls_context(self.db_tls),
        }


class Environment:
    """Environment variables that are checked when they are read. An empty one counts as unset."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self.variables = variables

    def text(self, name: str, default: str) -> str:
        """Return the value. Every text is allowed."""
        return self.variables.get(name) or default

    def choice(self, name: str, default: str, *others: str) -> str:
        """Return one of the options; exit with a message if the value is none of them."""
        options = (default, *others)
        text = self.text(name, default)
        if text not in options:
            raise SystemExit(f"{name} must be {' or '.join(options)}, not {text!r}.")
        return text

    def number(self, name: str, default: Number, low: Number, high: Number) -> Number:
        """Return a number of the default's type; exit with a message if it is out of range."""
        text = self.variables.get(name)
        if not text:
            return default
        number_type = type(default)
        try:
            number = number_type(text)
        except ValueError:
            number = None
        if number is None or not low <= number <= high:
            noun = "a whole number" if number_type is int else "a number"
            raise SystemExit(f"{name} must be {noun} from {low} to {high}, not {text!r}.")
        return number


def tls_context(mode: str) -> ssl.SSLContext | None:
    """Return how a connection to the database is encrypted, None if it is not."""
    if mode == "disabled":
        return None
    if mode == "verify-identity":
        return ssl.create_default_context()
    # MySQL's own certificate is self-signed. It encrypts, but proves no identity.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
