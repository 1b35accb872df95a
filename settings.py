"""The settings of the server and the seeder, and how both log in to the database."""

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Settings:
    """The settings with their types, defaults and ranges. README.md says what each one does."""

    def __init__(self, env: Mapping[str, str]) -> None:
        """Read all settings; exit with a message that names the first invalid one."""
        self.host = text(env, "HOST", "0.0.0.0")
        self.port = whole_number(env, "PORT", 80, 1, 65535)
        self.allowed_hosts = text(env, "ALLOWED_HOSTS", "*")  # names, with commas or spaces between
        self.drain = number(env, "DRAIN", 0, 0, 300)  # seconds
        self.make_unhealthy = choice(env, "MAKE_UNHEALTHY", "on", "off")

        self.db_host = text(env, "DB_HOST", "db")
        self.db_port = whole_number(env, "DB_PORT", 3306, 1, 65535)
        self.db_name = text(env, "DB_NAME", "cct")
        self.db_user = text(env, "DB_USER", "")
        self.db_password = text(env, "DB_PASSWORD", "")
        self.db_password_file = text(env, "DB_PASSWORD_FILE", "")
        self.db_tls = choice(env, "DB_TLS", "required", "verify-identity", "disabled")
        self.db_timeout = number(env, "DB_TIMEOUT", 2, 0.1, 60)  # seconds

        self.seed_accounts = whole_number(env, "SEED_ACCOUNTS", 100, 0, 10_000_000)
        self.seed_wait = number(env, "SEED_WAIT", 60, 1, 3600)  # seconds

        self.check_login()

    def check_login(self) -> None:
        """Exit with a message if the user or the password is missing."""
        if not self.db_user:
            raise SystemExit("DB_USER must name the database user.")
        if bool(self.db_password) == bool(self.db_password_file):
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
        password = Path(self.db_password_file).read_bytes().rstrip(b"\r\n")
        if not password:
            raise OSError(f"{self.db_password_file} is empty")
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
            # Each login asks for utf8mb4, too, but a database may ignore that.
            "init_command": "SET NAMES utf8mb4",
        }


def tls_context(mode: str) -> ssl.SSLContext | None:
    """Return how a connection to the database is encrypted, None if it is not."""
    if mode == "disabled":
        return None
    context = ssl.create_default_context()
    # Python 3.13 and later would refuse a private CA whose certificate lacks optional extensions.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if mode == "required":  # MySQL's own certificate encrypts, but proves no identity
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


# How a setting is read. An empty variable counts as unset.


def text(env: Mapping[str, str], name: str, default: str) -> str:
    """Return a setting. Every text is allowed."""
    return env.get(name) or default


def choice(env: Mapping[str, str], name: str, default: str, *others: str) -> str:
    """Return one of the options; exit with a message if the value is none of them."""
    options = (default, *others)
    value = text(env, name, default)
    if value not in options:
        raise SystemExit(f"{name} must be {' or '.join(options)}, not {value!r}.")
    return value


def number(env: Mapping[str, str], name: str, default: float, low: float, high: float) -> float:
    """Parse a number; exit with a message if it is invalid or out of range."""
    value = text(env, name, str(default))
    try:
        parsed = float(value)
    except ValueError:
        parsed = float("nan")  # which is in no range
    if not low <= parsed <= high:
        raise SystemExit(f"{name} must be a number from {low} to {high}, not {value!r}.")
    return parsed


def whole_number(env: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    """Parse a whole number; exit with a message if it is invalid or out of range."""
    value = text(env, name, str(default))
    if not value.isdecimal() or not low <= int(value) <= high:
        raise SystemExit(f"{name} must be a whole number from {low} to {high}, not {value!r}.")
    return int(value)
