"""settings.py: valid values, and the messages for invalid ones."""

from pathlib import Path

import pytest

from settings import Settings
from tests.app.conftest import StartServer
from tools.private_database import PrivateDatabase
from tools.waiting import until

LOGIN = {"DB_USER": "app", "DB_PASSWORD": "secret"}
ONE_PASSWORD = "Exactly one of DB_PASSWORD and DB_PASSWORD_FILE must be set."


def message(settings: dict[str, str]) -> object:
    """Return the message of a program that exits because of a setting."""
    with pytest.raises(SystemExit) as stop:
        Settings(settings)
    return stop.value.code


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


def test_user_and_one_password_must_be_set() -> None:
    assert message({"DB_PASSWORD": "secret"}) == "DB_USER must name the database user."
    assert message(LOGIN | {"DB_PASSWORD": ""}) == ONE_PASSWORD
    assert message(LOGIN | {"DB_PASSWORD_FILE": "/etc/hostname"}) == ONE_PASSWORD


def test_empty_setting_is_the_default() -> None:
    settings = Settings(LOGIN | {"PORT": "", "DB_TLS": "", "DB_TIMEOUT": "", "HOST": ""})
    assert vars(settings) == vars(Settings(LOGIN))


def test_last_line_end_is_no_part_of_the_password(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(" päss word \r\n")
    settings = Settings({"DB_USER": "app", "DB_PASSWORD_FILE": str(file)})
    assert settings.current_password() == " päss word ".encode()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "[Errno 2] No such file or directory: '{file}'"),
        ("", "{file} is empty"),
        ("\r\n", "{file} is empty"),
    ],
)
def test_bad_password_file_stops_the_start(
    tmp_path: Path, content: str | None, reason: str
) -> None:
    file = tmp_path / "password"
    if content is not None:
        file.write_text(content)
    sentence = f"DB_PASSWORD_FILE cannot be read: {reason.format(file=file)}."
    assert message({"DB_USER": "app", "DB_PASSWORD_FILE": str(file)}) == sentence


def test_password_file_that_goes_bad_is_a_503_with_its_name(
    database: PrivateDatabase, start_server: StartServer, tmp_path: Path
) -> None:
    """The server stays alive, and a good file ends the 503."""
    file = tmp_path / "password"
    file.write_text(database.passwords["app"])
    server = start_server(DB_PASSWORD="", DB_PASSWORD_FILE=str(file))
    file.write_text("")
    assert server.get("/")[0] == 503
    status, text = server.get("/ready")
    assert status == 503
    assert f"{file} is empty" in text
    assert server.get("/health") == (200, "healthy\n")

    file.write_text(database.passwords["app"])
    until(lambda: server.get()[0] == 200, "pages again", 5)
