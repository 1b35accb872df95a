"""Every environment variable of the server and the seeder, how both reach the database, and their log."""

import logging
import ssl
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

TIME_FORMAT = "%Y-%m-%d %H:%M:%S UTC"


def parse(name: str, hint: Any, text: str) -> Any:
    """Parse the text of a setting; exit with a message if it is invalid or out of range.

    The hint of a number is Annotated[type, lowest, highest], that of a choice Literal[options]; all else is text.
    """
    if get_origin(hint) is Literal and text not in get_args(hint):
        raise SystemExit(f"{name} must be {' or '.join(get_args(hint))}, not {text!r}.")
    if get_origin(hint) is not Annotated:
        return text
    number_type, low, high = get_args(hint)
    with suppress(ValueError):
        if low <= (value := number_type(text)) <= high:
            return value
    number = "a whole number" if number_type is int else "a number"
    raise SystemExit(f"{name} must be {number} from {low} to {high}, not {text!r}.")


@dataclass(frozen=True)
class Settings:
    """The settings of both programs: PORT in the environment is `port` here. README.md says what each one means."""

    host: str = "0.0.0.0"
    port: Annotated[int, 1, 65535] = 80
    allowed_hosts: str = "*"  # names, with a comma or a space between them
    drain: Annotated[float, 0, 300] = 0.0  # seconds
    make_unhealthy: Literal["on", "off"] = "on"

    db_host: str = "db"
    db_port: Annotated[int, 1, 65535] = 3306
    db_name: str = "cct"
    db_user: str = ""
    db_password: str = ""
    db_password_file: str = ""
    db_tls: Literal["required", "verify-identity", "disabled"] = "required"
    db_timeout: Annotated[float, 0.1, 60] = 2.0  # seconds

    seed_accounts: Annotated[int, 0, 100_000_000] = 100
    seed_file: str = ""
    seed_wait: Annotated[float, 1, 3600] = 60.0  # seconds

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> "Settings":
        """Read all settings; exit with a message that names the first invalid one. Empty means the default."""
        found = {name: text for name in cls.__annotations__ if (text := environment.get(name.upper()))}
        settings = cls(**{name: parse(name.upper(), cls.__annotations__[name], text) for name, text in found.items()})
        if not settings.db_user:
            raise SystemExit("DB_USER must name the database user.")
        if bool(settings.db_password) == bool(settings.db_password_file):
            raise SystemExit("Exactly one of DB_PASSWORD and DB_PASSWORD_FILE must be set.")
        try:
            settings.current_password()  # fail now, not at the first connection
        except OSError as error:
            raise SystemExit(f"DB_PASSWORD_FILE cannot be read: {error}.") from None
        return settings

    def current_password(self) -> bytes:
        """Return the password. A file is read again for each connection, so a rotated password needs no restart."""
        if self.db_password_file:
            return Path(self.db_password_file).read_bytes().rstrip(b"\r\n")
        return self.db_password.encode()

    def connect_arguments(self) -> dict[str, Any]:
        """Return the arguments of asyncmy.connect and asyncmy.Pool."""
        verify = self.db_tls == "verify-identity"
        tls = ssl.create_default_context() if verify else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if not verify:  # encrypts only: MySQL's self-signed certificate cannot be verified
            tls.check_hostname = False
            tls.verify_mode = ssl.CERT_NONE
        return {
            "host": self.db_host,
            "port": self.db_port,
            "database": self.db_name,
            "user": self.db_user,
            "password_creator": self.current_password,
            "ssl": None if self.db_tls == "disabled" else tls,
        }


def start_log() -> None:
    """Write log records to stdout, one line each."""
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(asctime)s %(message)s", datefmt=TIME_FORMAT)
    logging.getLogger("asyncmy").setLevel(logging.ERROR)  # it warns of CREATE TABLE IF NOT EXISTS
