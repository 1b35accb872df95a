"""seed.py: the accounts are written once, all or none."""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

import seed
from tools import ROOT
from tools.private_database import PrivateDatabase
from tools.waiting import until

NOTHING_TO_DO = (0, "the table has rows already: nothing to do\n")
SELECT = "SELECT * FROM cct.accounts"


def start(database: PrivateDatabase, **settings: str) -> subprocess.Popen[str]:
    """Start the seeder."""
    return subprocess.Popen(
        [sys.executable, f"{ROOT}/seed.py"],
        env=os.environ | database.env("seeder") | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for the end of the seeder; return its exit code and its output."""
    output, _ = process.communicate(timeout=60)
    return process.returncode, output


def run(database: PrivateDatabase, **settings: str) -> tuple[int, str]:
    """Run the seeder; return its exit code and its output."""
    return end(start(database, **settings))


# What it writes


def test_seeds_a_hundred_plausible_accounts(empty_database: PrivateDatabase) -> None:
    """All are different, and some names are not ASCII."""
    assert run(empty_database) == (0, "inserted 100 accounts\n")
    accounts = [seed.account(number) for number in range(1, 101)]
    assert empty_database.sql(SELECT) == tuple(accounts)
    names = {name for _, name, _ in accounts}
    emails = {email for _, _, email in accounts}
    assert len(names) == len(emails) == 100
    assert {name.isascii() for name in names} == {True, False}


def test_no_account_may_be_wanted(empty_database: PrivateDatabase) -> None:
    assert run(empty_database, SEED_ACCOUNTS="0") == (0, "inserted 0 accounts\n")
    assert empty_database.sql(SELECT) == ()


def test_rows_that_are_there_stay_as_they_are(empty_database: PrivateDatabase) -> None:
    run(empty_database)
    empty_database.sql("DELETE FROM cct.accounts WHERE id = 7")
    empty_database.sql("UPDATE cct.accounts SET name = 'edited' WHERE id = 8")
    edited = empty_database.sql(SELECT)
    assert run(empty_database, SEED_ACCOUNTS="500") == NOTHING_TO_DO
    assert empty_database.sql(SELECT) == edited


def test_rows_are_enough_for_a_seeder_that_may_only_read(database: PrivateDatabase) -> None:
    assert run(database, **database.env("app")) == NOTHING_TO_DO


# All rows or none


def test_engine_of_the_table_is_innodb(empty_database: PrivateDatabase) -> None:
    """MyISAM, for example, has no transactions: a killed seeder would leave some rows."""
    empty_database.sql("SET GLOBAL default_storage_engine = 'MyISAM'")
    try:
        run(empty_database)
    finally:
        empty_database.sql("SET GLOBAL default_storage_engine = 'InnoDB'")
    engine = "SELECT engine FROM information_schema.tables WHERE table_schema = 'cct'"
    assert empty_database.sql(engine) == (("InnoDB",),)


def test_seeder_killed_at_any_moment_leaves_all_rows_or_none(
    empty_database: PrivateDatabase,
) -> None:
    """The next seeder adds rows only to an empty table, so a partly filled table would stay so."""
    seconds = 0.0
    count = 1
    while count == 1:  # the killed seeder left no row, so the next one wrote its own
        process = start(empty_database, SEED_ACCOUNTS="20000")
        wait_until_connected(process, empty_database)
        time.sleep(seconds)
        process.kill()
        process.communicate()
        code, _ = run(empty_database, SEED_ACCOUNTS="1")
        assert code == 0
        ((count,),) = empty_database.sql("SELECT COUNT(*) FROM cct.accounts")
        assert count in (1, 20_000)
        empty_database.sql("DROP TABLE cct.accounts")
        seconds += 0.03


def wait_until_connected(process: subprocess.Popen[str], database: PrivateDatabase) -> None:
    """Wait until a seeder is connected, or has exited with 0."""
    until(lambda: process.poll() == 0 or database.connections("seeder"), "connected or ended")


def test_seeders_at_once_seed_once(empty_database: PrivateDatabase) -> None:
    seeders = [start(empty_database, SEED_ACCOUNTS="20000") for _ in range(10)]
    ends = [end(seeder) for seeder in seeders]
    assert {code for code, _ in ends} == {0}
    # The driver may have logged before that the table exists already.
    last_lines = [output.splitlines()[-1] for _, output in ends]
    assert last_lines.count("inserted 20000 accounts") == 1
    assert sum(line.endswith(": nothing to do") for line in last_lines) == 9
    assert empty_database.sql("SELECT COUNT(*) FROM cct.accounts") == ((20000,),)


# Waiting


def test_waits_for_the_database(empty_database: PrivateDatabase) -> None:
    with empty_database.stopped():
        process = start(empty_database)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(2)  # it has tried, and tries again
    assert end(process) == (0, "inserted 100 accounts\n")


def test_database_that_hangs_ends_the_seeder_after_seed_wait(
    empty_database: PrivateDatabase,
) -> None:
    """The database hangs before the login, or in the middle of the work."""
    with empty_database.hanging():
        process = start(empty_database, SEED_WAIT="1", DB_TIMEOUT="1")
        assert "TimeoutError" in reason_of_failure(process)
    process = start_writing(empty_database, SEED_WAIT="2")
    with empty_database.hanging():
        reason_of_failure(process)


def start_writing(database: PrivateDatabase, **settings: str) -> subprocess.Popen[str]:
    """Start a seeder of ten million accounts, and wait until it writes."""
    process = start(database, SEED_ACCOUNTS="10000000", **settings)
    writers = "SELECT 1 FROM information_schema.innodb_trx WHERE trx_rows_modified > 0"
    until(lambda: database.sql(writers), "writing")
    return process


def reason_of_failure(process: subprocess.Popen[str]) -> str:
    """Wait until a seeder fails with one line that names the database; return the line."""
    code, output = end(process)
    assert code == 1
    assert re.fullmatch(r"The database at 127\.0\.0\.1:\d+ could not be seeded: .*\n", output)
    return output


def test_error_that_waiting_does_not_heal_ends_the_seeder_at_once(
    empty_database: PrivateDatabase,
) -> None:
    refusals = [
        ("Access denied", {"DB_PASSWORD": "wrong"}),
        ("nothing", {"DB_NAME": "nothing"}),
        ("Access denied|cryptography", {"DB_TLS": "disabled"}),  # in MariaDB, in MySQL
        ("CREATE command denied", empty_database.env("app")),
    ]
    for words, settings in refusals:
        process = start(empty_database, SEED_WAIT="3600", **settings)
        assert re.search(words, reason_of_failure(process))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_the_seeder_with_one_line(
    empty_database: PrivateDatabase, number: signal.Signals
) -> None:
    """It logs in, or it writes."""
    stopped = (1, "Stopped. The database keeps all accounts or none.\n")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        process = start(empty_database, DB_PORT=str(silent.getsockname()[1]))
        with silent.accept()[0]:  # it waits for an answer
            process.send_signal(number)
            assert end(process) == stopped
    process = start_writing(empty_database)
    process.send_signal(number)
    assert end(process) == stopped
    assert empty_database.sql("SELECT COUNT(*) FROM cct.accounts") == ((0,),)
