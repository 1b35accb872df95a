"""seed.py: what it writes, once, whole or not at all."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import seed
from tests.conftest import Root, Sql, until
from tests.local import ROOT, Database, free_port


def start(database: Database, **settings: str) -> subprocess.Popen[str]:
    """Start seed.py."""
    return subprocess.Popen(
        [sys.executable, ROOT / "seed.py"],
        env=os.environ | database.env("seeder") | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(database: Database, **settings: str) -> tuple[int, str]:
    """Run seed.py; return its exit code and its last line."""
    process = start(database, **settings)
    output, errors = process.communicate(timeout=60)
    return process.returncode, (errors or output).splitlines()[-1]


async def rows(sql: Sql) -> list[tuple[str, str]]:
    return [(name, email) for name, email in await sql("SELECT name, email FROM cct.accounts ORDER BY id")]


async def test_seeds_a_hundred_plausible_accounts_the_same_each_time(empty_database: Database, sql: Sql) -> None:
    code, line = run(empty_database)
    assert (code, line[24:]) == (0, "inserted 100 accounts")
    accounts = await rows(sql)
    assert accounts == list(seed.generate(100))
    assert len(accounts) == len(set(accounts)) == 100
    assert any(not name.isascii() for name, _ in accounts)
    assert any(name.isascii() for name, _ in accounts)


async def test_second_run_changes_nothing(empty_database: Database, sql: Sql) -> None:
    run(empty_database)
    await sql("DELETE FROM cct.accounts WHERE id = 7")
    await sql("UPDATE cct.accounts SET name = 'edited' WHERE id = 8")
    before = await sql("SELECT * FROM cct.accounts")
    code, line = run(empty_database, SEED_ACCOUNTS="500")
    assert (code, line[24:]) == (0, "accounts has rows already: nothing to do")
    assert await sql("SELECT * FROM cct.accounts") == before


async def test_seeds_a_csv_file(empty_database: Database, sql: Sql, tmp_path: Path) -> None:
    file = tmp_path / "accounts.csv"
    file.write_text('\ufeffemail,name\na@example.com,"Ada, ""the"" first"\n\nß@example.com,Łukasz\n', encoding="utf-8")
    code, line = run(empty_database, SEED_FILE=str(file))
    assert (code, line[24:]) == (0, "inserted 2 accounts")
    assert await rows(sql) == [('Ada, "the" first', "a@example.com"), ("Łukasz", "ß@example.com")]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"", "line 1: the header must be name,email, not ''."),
        (b"name,mail\n", "line 1: the header must be name,email, not 'name,mail'."),
        (b"name,email\nAda,a@b\nBob\n", "line 3, column email: 1 to 254 characters are needed."),
        (b"name,email\n,a@b\n", "line 2, column name: 1 to 254 characters are needed."),
        (b"name,email\nAda," + b"x" * 255, "line 2, column email: 1 to 254 characters are needed."),
        (b"name,email\nAda,a@b,c\n", "line 2: there are more values than columns."),
        (b'name,email\nAda,"a@b\n', "line 2: unexpected end of data."),
        (b"name,email\nAda,\xff\n", "'utf-8' codec can't decode byte 0xff in position 15: invalid start byte."),
    ],
)
async def test_bad_csv_is_named_and_nothing_is_inserted(
    empty_database: Database, sql: Sql, tmp_path: Path, text: bytes, sentence: str
) -> None:
    file = tmp_path / "accounts.csv"
    file.write_bytes(text)
    code, line = run(empty_database, SEED_FILE=str(file))
    assert code == 1
    assert line.startswith(str(file))
    assert line.endswith(sentence)
    assert await rows(sql) == []


async def test_bad_row_after_many_good_ones_leaves_none(empty_database: Database, sql: Sql, tmp_path: Path) -> None:
    file = tmp_path / "accounts.csv"
    file.write_text("name,email\n" + "Ada,ada@example.com\n" * 5000 + "Bob\n")
    code, line = run(empty_database, SEED_FILE=str(file))
    assert (code, line) == (1, f"{file}, line 5002, column email: 1 to 254 characters are needed.")
    assert await rows(sql) == []


async def test_missing_file_is_named(empty_database: Database) -> None:
    code, line = run(empty_database, SEED_FILE="/nowhere.csv")
    assert (code, line) == (1, "SEED_FILE cannot be read: [Errno 2] No such file or directory: '/nowhere.csv'.")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_killed_seeder_leaves_no_row_and_the_next_one_seeds(
    empty_database: Database, sql: Sql, how: signal.Signals
) -> None:
    process = start(empty_database, SEED_ACCOUNTS="10000000")
    try:
        assert process.stdout
        assert "inserted" in await asyncio.to_thread(process.stdout.readline)  # so far
        process.send_signal(how)
        _, errors = process.communicate(timeout=10)
    finally:
        process.kill()
    assert (process.returncode, errors) == ((1, "Stopped.\n") if how == signal.SIGTERM else (-9, ""))
    assert run(empty_database)[0] == 0
    assert await rows(sql) == list(seed.generate(100))


async def test_seeder_killed_while_it_waits_for_another_is_no_obstacle(
    empty_database: Database, root: Root, sql: Sql
) -> None:
    async with root() as connection, connection.cursor() as cursor:
        await cursor.execute("SELECT GET_LOCK('cct.seed', 0)")
        process = start(empty_database)
        await until(lambda: sql("SELECT 1 FROM information_schema.processlist WHERE state = 'User lock'"))
        process.kill()
        process.communicate()
    assert run(empty_database)[0] == 0
    assert await rows(sql) == list(seed.generate(100))


async def test_two_seeders_at_once_seed_once(empty_database: Database, sql: Sql) -> None:
    seeders = [start(empty_database, SEED_ACCOUNTS="20000") for _ in range(2)]
    output = sorted(seeder.communicate(timeout=60)[0].splitlines()[-1][24:] for seeder in seeders)
    assert output == ["accounts has rows already: nothing to do", "inserted 20000 accounts"]
    assert await sql("SELECT COUNT(*) FROM cct.accounts") == ((20000,),)


async def test_waits_for_the_database(empty_database: Database, sql: Sql) -> None:
    empty_database.stop()
    process = start(empty_database)
    with pytest.raises(subprocess.TimeoutExpired):
        process.communicate(timeout=1)
    empty_database.start()
    process.communicate(timeout=20)
    assert process.returncode == 0
    assert len(await rows(sql)) == 100


def test_gives_up_after_seed_wait_with_one_line(empty_database: Database) -> None:
    began = time.monotonic()
    port = str(free_port())
    process = start(empty_database, DB_PORT=port, SEED_WAIT="1")
    output, errors = process.communicate(timeout=20)
    assert (process.returncode, output, errors.count("\n")) == (1, "", 1)
    assert errors.startswith(f"No database at 127.0.0.1:{port} within 1 s: ")
    assert time.monotonic() - began >= 1


def test_bad_setting_is_named(empty_database: Database) -> None:
    assert run(empty_database, SEED_ACCOUNTS="-1") == (
        1,
        "SEED_ACCOUNTS must be a whole number from 0 to 100000000, not '-1'.",
    )


async def test_memory_does_not_grow_with_the_rows(empty_database: Database, sql: Sql) -> None:
    def peak(accounts: int) -> int:
        """Return the peak memory of a seeder in KiB."""
        process = start(empty_database, SEED_ACCOUNTS=str(accounts))
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        process.communicate()
        assert process.returncode == 0
        return usage.ru_maxrss // (1024 if sys.platform == "darwin" else 1)

    small = peak(2_000)
    await sql("DROP TABLE cct.accounts")
    assert peak(200_000) < small + 4_096
