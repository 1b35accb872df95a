"""The accounts: what keeps them, and what brings them back."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.documents import TASKS
from tests.stack import Stack
from tools.waiting import until

CHECKSUM = "CHECKSUM TABLE accounts"
EDIT = "UPDATE accounts SET name = CONCAT(name, ' edited') WHERE id = 1"
LOAD_CSV = TASKS.commands("Load your own CSV").splitlines()[-1]  # loads my.csv


@contextmanager
def accounts_stay(stack: Stack) -> Iterator[None]:
    """Fail if the accounts change in the context, or if restore.sh or load-csv.sh leaves a file."""
    rows = stack.sql(CHECKSUM)
    yield
    assert stack.sql(CHECKSUM) == rows
    assert_no_scratch(stack)


def assert_no_scratch(stack: Stack) -> None:
    """Fail if restore.sh or load-csv.sh left something."""
    assert stack.sql("SHOW DATABASES LIKE 'cct_scratch'") == ""
    assert stack.sql("SELECT user FROM mysql.user WHERE user = 'cct_scratch'") == ""
    files = ("-name", ".upload", "-o", "-name", "lock-*")
    assert stack.exec("db", "find", "/tmp", "/var/lib/mysql", *files) == ""


def failure(stack: Stack, command: str) -> str:
    """Run a command that must fail, and return its output."""
    with pytest.raises(AssertionError) as error:
        stack.shell(command)
    return str(error.value)


def make_backup(stack: Stack) -> bytes:
    """Make a backup as docs/tasks.md says, and return it."""
    stack.shell(TASKS.commands("Backup"))
    return (stack.folder / "backup.sql").read_bytes()


def test_restart_keeps_the_accounts(stack: Stack) -> None:
    stack.sql(f"{EDIT}; DELETE FROM accounts WHERE id = 2")
    accounts = stack.page()["accounts"]
    stack.compose("restart")
    until(lambda: stack.get("/ready")[0] == 200, "ready")
    stack.wait_until_healthy()
    assert stack.page()["accounts"] == accounts


def test_missing_column_is_named_and_repaired(stack: Stack) -> None:
    """A newer version may expect a column that an older table lacks."""
    stack.sql("ALTER TABLE accounts RENAME COLUMN email TO address")
    stack.up()  # the seeder finds rows, and does not look at the columns
    reason = "The accounts cannot be read. Unknown column 'email' in 'field list'\n"
    assert stack.get("/ready") == (503, f"not ready: {reason}")
    until(lambda: reason in stack.logs("app"), "logged")

    stack.sql("ALTER TABLE accounts RENAME COLUMN address TO email")
    assert len(stack.page()["accounts"]) == 50


def test_backup_is_restored(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore into a new stack, after a loss of rows, and after a loss of the table."""
    rows = stack.sql(CHECKSUM)
    make_backup(stack)
    stack.compose("down", "-v")
    monkeypatch.setitem(stack.env, "SEED_ACCOUNTS", "0")
    stack.up()
    for loss in ("DO 0", "DELETE FROM accounts WHERE id > 50", "DROP TABLE accounts"):
        stack.sql(loss)
        assert stack.sql(CHECKSUM) != rows
        stack.shell(TASKS.commands("Restore"))
        assert stack.sql(CHECKSUM) == rows
        assert_no_scratch(stack)
    monkeypatch.undo()
    stack.up()


def test_backup_without_db_keeps_the_old_backup(stack: Stack) -> None:
    before = make_backup(stack)
    assert before.splitlines()[-1].startswith(b"-- Dump completed")

    stack.compose("stop", "db")
    failure(stack, TASKS.commands("Backup"))
    stack.up()
    assert (stack.folder / "backup.sql").read_bytes() == before


MARIADB = (b"utf8mb4_0900_ai_ci", b"utf8mb4_uca1400_ai_ci")
BAD_BACKUPS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "nothing": (lambda backup: b"", "The backup is empty."),
    "half": (lambda backup: backup[: len(backup) // 2], "The backup is not complete"),
    "no last line": (lambda backup: backup[: backup.rindex(b"-- Dump")], "is not complete"),
    "MariaDB 11.8": (lambda backup: backup.replace(*MARIADB), "Unknown collation"),
    "another database": (lambda backup: b"DROP DATABASE cct;\n" + backup, "Access denied"),
}


@pytest.mark.parametrize("kind", BAD_BACKUPS)
def test_restore_refuses_a_bad_backup(stack: Stack, kind: str) -> None:
    spoil, sentence = BAD_BACKUPS[kind]
    backup = make_backup(stack)
    stack.sql(EDIT)
    (stack.folder / "backup.sql").write_bytes(spoil(backup))
    with accounts_stay(stack):
        assert sentence in failure(stack, TASKS.commands("Restore"))


@pytest.mark.parametrize("cause", ["client", "db"])
def test_restore_that_is_cut_off_changes_nothing(stack: Stack, cause: str) -> None:
    """Its client is killed, or db. Meanwhile, a second restore is refused. Later, one succeeds."""
    backup = make_backup(stack)
    stack.sql(EDIT)
    rows = stack.sql(CHECKSUM)
    tables = "SELECT 1 FROM information_schema.tables WHERE table_schema = 'cct_scratch'"
    restore = ["docker", "exec", "--interactive", stack.container("db"), "restore.sh"]
    with subprocess.Popen(restore, env=stack.env, stdin=subprocess.PIPE) as client:
        assert client.stdin
        client.stdin.write(backup[: backup.index(b"UNLOCK TABLES")])
        client.stdin.flush()
        until(lambda: stack.sql(tables), "begun")
        assert "Another restore or load runs." in failure(stack, TASKS.commands("Restore"))
        if cause == "db":
            stack.compose("restart", "--timeout", "0", "db")
        client.kill()
    stack.wait_until_healthy("db")
    until(lambda: stack.exec("db", "find", "/tmp", "-name", "lock-*") == "", "over")
    assert stack.sql(CHECKSUM) == rows
    stack.shell(TASKS.commands("Restore"))
    assert stack.sql(CHECKSUM) != rows
    assert_no_scratch(stack)


def test_restore_does_not_wait_for_a_transaction(stack: Stack) -> None:
    """While it waited, no page could be read."""
    make_backup(stack)
    stack.sql(EDIT)
    with accounts_stay(stack), stack.locked_table():
        assert "Lock wait timeout" in failure(stack, TASKS.commands("Restore"))


def test_own_csv_file_is_loaded(stack: Stack) -> None:
    """The file of docs/tasks.md, and one of a spreadsheet.

    That has a byte order mark, quotes, CRLF, and no line end at its end.
    """
    stack.shell(TASKS.commands("Load your own CSV"))
    names = [account["name"] for account in stack.page()["accounts"]]
    assert names == ["Ada Lovelace"]

    text = '\ufeff"name",email\r\n"Ada, ""the"" first",a@b\r\n"Łukasz \\N 王",ß@c'
    (stack.folder / "my.csv").write_bytes(text.encode())
    stack.shell(LOAD_CSV)
    assert stack.page()["accounts"] == [
        {"id": 1, "name": 'Ada, "the" first', "email": "a@b"},
        {"id": 2, "name": "Łukasz \\N 王", "email": "ß@c"},
    ]
    stack.sql("TRUNCATE accounts")
    stack.up()  # seeds again


BAD_CSV_FILES = {
    "empty": (b"", "The first line must be name,email"),
    "semicolons": (b"name;email\nAda;a@b\n", "The first line must be name,email"),
    "no account": (b"name,email\n", "The file has no accounts."),
    "one value": (b"name,email\nAda,a@b\nBob\n", "Row 2 doesn't contain data for all columns"),
    "three values": (b"name,email\nAda,a@b,c\n", "Row 1 was truncated"),
    "long": (b"name,email\nAda," + b"x" * 255, "Data truncated for column 'email' at row 1"),
    "blank email": (b"name,email\nAda,a@b\nBob, \n", "Row 2 after name,email has an empty value"),
    "open quote": (b'name,email\nAda,"a@b\nBob,b@c\n', "or a value of two lines"),
    "Latin-1": (b"name,email\nBj\xf6rn,a@b\n", "Incorrect string value: '\\\\xF6rn'"),
    "UTF-16": ("name,email\nAda,a@b\n".encode("utf-16"), "The first line must be name,email"),
}


@pytest.mark.parametrize("kind", BAD_CSV_FILES)
def test_bad_csv_file_loses_no_account(stack: Stack, kind: str) -> None:
    content, sentence = BAD_CSV_FILES[kind]
    (stack.folder / "my.csv").write_bytes(content)
    with accounts_stay(stack):
        assert sentence in failure(stack, LOAD_CSV)


def test_part_of_a_csv_file_is_refused(stack: Stack) -> None:
    """The sender was stopped: fewer bytes arrive than were announced."""
    command = "printf 'name,email\\nAda,a@b\\n' | docker compose exec -T db load-csv.sh 1000"
    with accounts_stay(stack):
        assert "The file is not whole" in failure(stack, command)
