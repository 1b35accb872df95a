"""The accounts: what keeps them, and what brings them back."""

import pytest

from tests.documents import TASKS
from tests.stack import Stack
from tools.waiting import until


def test_restart_keeps_the_accounts(stack: Stack) -> None:
    stack.sql("UPDATE accounts SET name = 'edited' WHERE id = 1; DELETE FROM accounts WHERE id = 2")
    accounts = stack.page()["accounts"]
    stack.compose("restart")
    until(lambda: stack.get("/ready")[0] == 200, "ready")
    stack.wait_until_healthy()
    assert stack.page()["accounts"] == accounts


def test_down_keeps_the_accounts_and_the_passwords(stack: Stack) -> None:
    accounts = stack.page()["accounts"]
    passwords = stack.passwords()
    stack.compose("down")
    stack.up()
    assert stack.page()["accounts"] == accounts
    assert stack.passwords() == passwords
    assert stack.logs("seeder").endswith("the table has rows already: nothing to do\n")


def test_missing_column_is_named_and_repaired(stack: Stack) -> None:
    """A newer version may expect a column that an older table lacks."""
    stack.sql("ALTER TABLE accounts RENAME COLUMN email TO address")
    stack.up()  # the seeder finds rows, and does not look at the columns
    reason = "missing column: Unknown column 'email' in 'field list'\n"
    assert stack.get("/ready") == (503, f"not ready: {reason}")
    until(lambda: f"accounts cannot be read: {reason}" in stack.logs("app"), "logged")

    stack.sql("ALTER TABLE accounts RENAME COLUMN address TO email")
    assert len(stack.page()["accounts"]) == 50


def test_backup_is_restored(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore into a new stack, after a loss of rows, and after a loss of the table."""
    rows = stack.sql("CHECKSUM TABLE accounts")
    stack.shell(TASKS.commands("Backup"))
    stack.compose("down", "-v")
    monkeypatch.setitem(stack.env, "SEED_ACCOUNTS", "0")
    stack.up()
    for loss in ("DO 0", "DELETE FROM accounts WHERE id > 50", "DROP TABLE accounts"):
        stack.sql(loss)
        assert stack.sql("CHECKSUM TABLE accounts") != rows
        stack.shell(TASKS.commands("Restore"))
        assert stack.sql("CHECKSUM TABLE accounts") == rows
    monkeypatch.undo()
    stack.up()


def test_backup_without_db_keeps_the_old_backup(stack: Stack) -> None:
    backup = stack.folder / "backup.sql"
    stack.shell(TASKS.commands("Backup"))
    before = backup.read_bytes()
    assert before.splitlines()[-1].startswith(b"-- Dump completed")

    stack.compose("stop", "db")
    with pytest.raises(AssertionError):
        stack.shell(TASKS.commands("Backup"))
    stack.up()
    assert backup.read_bytes() == before


@pytest.mark.parametrize("part", [0, 0.5, 0.99])
def test_restore_refuses_an_incomplete_backup(stack: Stack, part: float) -> None:
    """An empty file, half of a backup, and one without the last line change nothing."""
    rows = stack.sql("CHECKSUM TABLE accounts")
    stack.shell(TASKS.commands("Backup"))
    backup = stack.folder / "backup.sql"
    text = backup.read_bytes()
    backup.write_bytes(text[: int(len(text) * part)])
    message = stack.shell(f"({TASKS.commands('Restore')}) 2>&1 || true")
    assert "backup.sql is not complete" in message
    assert stack.sql("CHECKSUM TABLE accounts") == rows


def test_own_csv_file_is_loaded(stack: Stack) -> None:
    stack.shell(TASKS.commands("Load your own CSV"))
    names = [account["name"] for account in stack.page()["accounts"]]
    stack.sql("TRUNCATE accounts")
    stack.up()
    assert names == ["Ada Lovelace"]


@pytest.mark.parametrize("content", ["name\nAda\n", "name,email\n,x\n", "name,email\nAda,x,y\n"])
def test_bad_csv_file_loses_no_account(stack: Stack, content: str) -> None:
    """The commands of docs/tasks.md check the file before they delete anything."""
    rows = stack.sql("CHECKSUM TABLE accounts")
    (stack.folder / "my.csv").write_text(content)
    commands = TASKS.commands("Load your own CSV")
    _, _, load = commands.partition(">my.csv\n")
    with pytest.raises(AssertionError, match=r"my.csv, line \d"):
        stack.shell(load)
    assert stack.sql("CHECKSUM TABLE accounts") == rows
