"""Settings: their defaults, and the sentence with which a bad one stops the start."""

from pathlib import Path

import pytest

from settings import Settings

LOGIN = {"DB_USER": "app", "DB_PASSWORD": "secret"}


def test_defaults() -> None:
    settings = Settings.read(LOGIN)
    assert (settings.host, settings.port, settings.allowed_hosts) == ("0.0.0.0", 80, "*")
    assert (settings.drain, settings.make_unhealthy) == (0, "on")
    assert (settings.db_host, settings.db_port, settings.db_name) == ("db", 3306, "cct")
    assert (settings.db_tls, settings.db_timeout) == ("required", 2)
    assert (settings.seed_accounts, settings.seed_file, settings.seed_wait) == (100, "", 60)


def test_empty_value_is_the_default() -> None:
    assert Settings.read(LOGIN | {"PORT": "", "DB_TLS": ""}) == Settings.read(LOGIN)


def test_password_file_is_read_without_its_last_line_end(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(" päss word \r\n")
    settings = Settings.read({"DB_USER": "app", "DB_PASSWORD_FILE": str(file)})
    assert settings.current_password() == " päss word ".encode()


@pytest.mark.parametrize(
    ("env", "sentence"),
    [
        ({"PORT": "http"}, "PORT must be a whole number from 1 to 65535, not 'http'."),
        ({"PORT": "0"}, "PORT must be a whole number from 1 to 65535, not '0'."),
        ({"DB_PORT": "65536"}, "DB_PORT must be a whole number from 1 to 65535, not '65536'."),
        ({"DB_TIMEOUT": "nan"}, "DB_TIMEOUT must be a number from 0.1 to 60, not 'nan'."),
        ({"DRAIN": "-1"}, "DRAIN must be a number from 0 to 300, not '-1'."),
        ({"DB_TLS": "on"}, "DB_TLS must be required or verify-identity or disabled, not 'on'."),
        ({"MAKE_UNHEALTHY": "no"}, "MAKE_UNHEALTHY must be on or off, not 'no'."),
        ({"DB_USER": ""}, "DB_USER must name the database user."),
        ({"DB_PASSWORD": ""}, "Exactly one of DB_PASSWORD and DB_PASSWORD_FILE must be set."),
        ({"DB_PASSWORD_FILE": "/etc/hostname"}, "Exactly one of DB_PASSWORD and DB_PASSWORD_FILE must be set."),
        (
            {"DB_PASSWORD": "", "DB_PASSWORD_FILE": "/nowhere"},
            "DB_PASSWORD_FILE cannot be read: [Errno 2] No such file or directory: '/nowhere'.",
        ),
        ({"SEED_ACCOUNTS": "many"}, "SEED_ACCOUNTS must be a whole number from 0 to 100000000, not 'many'."),
        ({"SEED_WAIT": "inf"}, "SEED_WAIT must be a number from 1 to 3600, not 'inf'."),
    ],
)
def test_bad_value_is_named(env: dict[str, str], sentence: str) -> None:
    with pytest.raises(SystemExit) as stop:
        Settings.read(LOGIN | env)
    assert stop.value.code == sentence
