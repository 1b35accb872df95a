"""seed.py: the accounts are written once, all or none."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext

import pytest

import seed
from tools import ROOT
from tools.private_database import PrivateDatabase
from tools.waiting import free_port, until

NOTHING_TO_DO = (0, "the table has rows already: nothing to do\n")
OTHER_SEEDER = (0, "another seeder has filled the table: nothing to do\n")
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


def failure(database: PrivateDatabase, **settings: str) -> str:
    """Run a seeder that fails; return why. It fails with one sentence that names the database."""
    code, output = run(database, **settings)
    sentence = f"The database at 127.0.0.1:{settings.get('DB_PORT', database.port)} could not be "
    assert code == 1
    assert output.startswith(sentence), output
    assert output.count("\n") == 1, output
    return output


# What it writes


def test_seeds_a_hundred_accounts(empty_database: PrivateDatabase) -> None:
    assert run(empty_database) == (0, "inserted 100 accounts\n")
    accounts = [seed.account(number) for number in range(1, 101)]
    assert empty_database.sql(SELECT) == tuple(accounts)


def test_accounts_are_plausible() -> None:
    """All are different, and some names are not ASCII."""
    accounts = [seed.account(number) for number in range(1, 101)]
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


@pytest.fixture
def read_only_database(database: PrivateDatabase) -> Iterator[PrivateDatabase]:
    """Yield a database that nobody but root may change, such as a replica."""
    database.sql("SET GLOBAL read_only = ON")
    yield database
    database.sql("SET GLOBAL read_only = OFF")


def test_rows_of_a_read_only_database_are_enough(read_only_database: PrivateDatabase) -> None:
    assert run(read_only_database) == NOTHING_TO_DO


def test_rows_are_enough_for_a_user_who_may_only_read(database: PrivateDatabase) -> None:
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

    def is_connected() -> bool:
        return process.poll() == 0 or len(database.connections("seeder")) > 0

    until(is_connected, "connected or ended")


def test_seeders_at_once_seed_once(empty_database: PrivateDatabase) -> None:
    seeders = [start(empty_database, SEED_ACCOUNTS="20000") for _ in range(10)]
    ends = [end(seeder) for seeder in seeders]
    assert ends.count((0, "inserted 20000 accounts\n")) == 1
    assert ends.count(NOTHING_TO_DO) + ends.count(OTHER_SEEDER) == 9, ends
    assert empty_database.sql("SELECT COUNT(*) FROM cct.accounts") == ((20000,),)


# Waiting


def test_waits_for_the_database(empty_database: PrivateDatabase) -> None:
    with empty_database.stopped():
        process = start(empty_database)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(2)  # it has tried, and tries again
    assert end(process) == (0, "inserted 100 accounts\n")


def test_gives_up_after_seed_wait(empty_database: PrivateDatabase) -> None:
    """The host is 127.0.0.1. In a container, it would be the container itself."""
    reason = failure(empty_database, DB_PORT=str(free_port()), SEED_WAIT="1")
    assert "Can't connect" in reason
    assert "In a container, localhost is the container: use host.docker.internal." in reason


def test_database_that_hangs_ends_the_seeder_after_seed_wait(
    empty_database: PrivateDatabase,
) -> None:
    """The database hangs before the login, or in the middle of the work."""
    with empty_database.hanging():
        assert "TimeoutError" in failure(empty_database, SEED_WAIT="1", DB_TIMEOUT="1")
    process = start(empty_database, SEED_ACCOUNTS="10000000", SEED_WAIT="2")
    wait_for_writers(empty_database, 1)
    with empty_database.hanging():
        process.wait(10)
    code, output = end(process)
    assert code == 1
    assert "could not be seeded" in output
    assert output.count("\n") == 1


def wait_for_writers(database: PrivateDatabase, count: int) -> None:
    """Wait until this many seeders insert, or roll back."""
    writers = "SELECT COUNT(*) FROM information_schema.innodb_trx WHERE trx_rows_modified > 0"
    until(lambda: database.sql(writers) == ((count,),), f"{count} writers")


# By the words of the error: settings that make it. MariaDB refuses a login in the clear; with
# MySQL, asyncmy lacks a package for it.
REFUSALS = {
    "Access denied": {"DB_PASSWORD": "wrong"},
    "nothing": {"DB_NAME": "nothing"},
    "Access denied|cryptography": {"DB_TLS": "disabled"},
}


@pytest.mark.parametrize("words", REFUSALS)
def test_error_that_waiting_does_not_heal_ends_the_seeder_at_once(
    empty_database: PrivateDatabase, words: str
) -> None:
    assert re.search(words, failure(empty_database, SEED_WAIT="3600", **REFUSALS[words]))


def test_missing_right_is_named(empty_database: PrivateDatabase) -> None:
    assert "denied" in failure(empty_database, **empty_database.env("app"))


# Signals


STOPPED = (1, "Stopped. The database keeps all accounts or none.\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_the_seeder_with_one_line(
    empty_database: PrivateDatabase, number: signal.Signals
) -> None:
    """It logs in, it writes, or the database hangs."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        process = start(empty_database, DB_PORT=str(silent.getsockname()[1]))
        with silent.accept()[0]:  # it waits for an answer
            process.send_signal(number)
            assert end(process) == STOPPED
    for hangs in (False, True):
        wait_for_writers(empty_database, 0)
        process = start(empty_database, SEED_ACCOUNTS="10000000")
        wait_for_writers(empty_database, 1)
        with empty_database.hanging() if hangs else nullcontext():
            process.send_signal(number)
            assert end(process) == STOPPED
    assert empty_database.sql("SELECT COUNT(*) FROM cct.accounts") == ((0,),)
