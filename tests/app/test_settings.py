"""settings.py: valid values, and the messages for invalid ones."""

from pathlib import Path

import pytest

from settings import Settings
from tests.app.conftest import StartServer
from tools.private_database import PrivateDatabase
from tools.waiting import until

LOGIN = {"DB_USER": "app", "DB_PASSWORD": "secret"}


def message(settings: dict[str, str]) -> object:
    """Return the message of a program that exits because of a setting."""
    with pytest.raises(SystemExit) as stop:
        Settings(settings)
    return stop.value.code


def password_file_message(file: Path) -> object:
    return message({"DB_USER": "app", "DB_PASSWORD_FILE": str(file)})


@pytest.mark.parametrize(
    ("setting", "value", "rule"),
    [
        ("PORT", "0", "a whole number from 1 to 65535"),
        ("PORT", "80.5", "a whole number from 1 to 65535"),
        ("DRAIN", "301", "a number from 0 to 300"),
        ("DB_PORT", "65536", "a whole number from 1 to 65535"),
        ("DB_TIMEOUT", "nan", "a number from 0.1 to 60"),
        ("SEED_ACCOUNTS", "-1", "a whole number from 0 to 10000000"),
        ("SEED_WAIT", "inf", "a number from 1 to 3600"),
        ("DB_TLS", "on", "required or verify-identity or disabled"),
        ("MAKE_UNHEALTHY", "no", "on or off"),
    ],
)
def test_bad_setting_is_named_with_its_rule(setting: str, value: str, rule: str) -> None:
    assert message(LOGIN | {setting: value}) == f"{setting} must be {rule}, not {value!r}."


def test_user_must_be_set() -> None:
    assert message({"DB_PASSWORD": "secret"}) == "DB_USER must name the database user."


def test_exactly_one_password_must_be_set() -> None:
    sentence = "Exactly one of DB_PASSWORD and DB_PASSWORD_FILE must be set."
    assert message({"DB_USER": "app"}) == sentence
    assert message(LOGIN | {"DB_PASSWORD": ""}) == sentence
    assert message(LOGIN | {"DB_PASSWORD_FILE": "/etc/hostname"}) == sentence


def test_empty_setting_is_the_default() -> None:
    settings = Settings(LOGIN | {"PORT": "", "DB_TLS": "", "DB_TIMEOUT": "", "HOST": ""})
    assert vars(settings) == vars(Settings(LOGIN))


def test_setting_replaces_the_default() -> None:
    settings = Settings(LOGIN | {"PORT": "8080", "DB_TIMEOUT": "0.5", "DB_NAME": "other"})
    assert settings.port == 8080
    assert settings.db_timeout == 0.5
    assert settings.db_name == "other"


def test_password_file_is_read_each_time(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(" päss word \r\n")
    settings = Settings({"DB_USER": "app", "DB_PASSWORD_FILE": str(file)})
    assert settings.current_password() == " päss word ".encode()
    file.write_text("rotated")
    assert settings.current_password() == b"rotated"


def test_missing_password_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "password"
    reason = f"[Errno 2] No such file or directory: '{file}'"
    assert password_file_message(file) == f"DB_PASSWORD_FILE cannot be read: {reason}."


@pytest.mark.parametrize("content", ["", "\n", "\r\n"])
def test_empty_password_file_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "password"
    file.write_text(content)
    assert password_file_message(file) == f"DB_PASSWORD_FILE cannot be read: {file} is empty."


@pytest.mark.parametrize("kind", ["empty", "missing", "folder"])
def test_password_file_that_goes_bad_is_a_503_with_its_name(
    database: PrivateDatabase, start_server: StartServer, tmp_path: Path, kind: str
) -> None:
    """The server stays alive, and a good file ends the 503."""
    file = tmp_path / "password"
    file.write_text(database.passwords["app"])
    server = start_server(DB_PASSWORD="", DB_PASSWORD_FILE=str(file))
    file.unlink()
    if kind == "empty":
        file.touch()
    elif kind == "folder":
        file.mkdir()

    assert server.get("/")[0] == 503
    status, text = server.get("/ready")
    assert status == 503
    assert str(file) in text
    assert server.get("/health") == (200, "healthy\n")

    if kind == "folder":
        file.rmdir()
    file.write_text(database.passwords["app"])
    until(lambda: server.get()[0] == 200, "pages again", 5)
