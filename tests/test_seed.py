"""seed.py: what it writes, once, whole or not at all."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import seed
from tests.conftest import Sql
from tests.database import DatabaseServer, private_database
from tests.helpers import ROOT, free_port, until

GALERA = Path("/usr/lib/galera/libgalera_smm.so")
HUNDRED = tuple((i, *account) for i, account in enumerate(seed.generate(100), 1))


def start(database: DatabaseServer, **settings: str) -> subprocess.Popen[str]:
    """Start seed.py."""
    return subprocess.Popen(
        [sys.executable, ROOT / "seed.py"],
        env=os.environ | database.env("seeder") | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for the end; return the exit code and the last line without its time."""
    output, errors = process.communicate(timeout=60)
    line = (errors or output).splitlines()[-1]
    return process.returncode, line.partition(" UTC ")[2] or line


def run(database: DatabaseServer, **settings: str) -> tuple[int, str]:
    return end(start(database, **settings))


def test_seeds_a_hundred_plausible_accounts_the_same_each_time(empty_database: DatabaseServer, sql: Sql) -> None:
    assert run(empty_database) == (0, "inserted 100 accounts")
    assert sql("SELECT * FROM cct.accounts") == HUNDRED
    names, emails = zip(*seed.generate(100), strict=True)
    assert len(set(names)) == len(set(emails)) == 100
    assert {name.isascii() for name in names} == {True, False}


def test_second_run_changes_nothing(empty_database: DatabaseServer, sql: Sql) -> None:
    run(empty_database)
    sql("DELETE FROM cct.accounts WHERE id = 7")
    sql("UPDATE cct.accounts SET name = 'edited' WHERE id = 8")
    before = sql("SELECT * FROM cct.accounts")
    assert run(empty_database, SEED_ACCOUNTS="500") == (0, "accounts has rows already: nothing to do")
    assert sql("SELECT * FROM cct.accounts") == before


def test_seeds_a_csv_file(empty_database: DatabaseServer, sql: Sql, tmp_path: Path) -> None:
    file = tmp_path / "accounts.csv"
    file.write_text('\ufeffemail,name\na@example.com,"Ada, ""the"" first"\n\nß@example.com,Łukasz\n', encoding="utf-8")
    assert run(empty_database, SEED_FILE=str(file)) == (0, "inserted 2 accounts")
    accounts = (1, 'Ada, "the" first', "a@example.com"), (2, "Łukasz", "ß@example.com")
    assert sql("SELECT * FROM cct.accounts") == accounts


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
def test_bad_csv_is_named_and_nothing_is_inserted(
    empty_database: DatabaseServer, sql: Sql, tmp_path: Path, text: bytes, sentence: str
) -> None:
    file = tmp_path / "accounts.csv"
    file.write_bytes(text)
    code, line = run(empty_database, SEED_FILE=str(file))
    assert code == 1
    assert str(file) in line
    assert line.endswith(sentence)
    assert sql("SELECT * FROM cct.accounts") == ()


def test_bad_row_after_many_good_ones_leaves_none(empty_database: DatabaseServer, sql: Sql, tmp_path: Path) -> None:
    file = tmp_path / "accounts.csv"
    file.write_text("name,email\n" + "Ada,ada@example.com\n" * 5000 + "Bob\n")
    code, line = run(empty_database, SEED_FILE=str(file))
    assert (code, line) == (1, f"{file}, line 5002, column email: 1 to 254 characters are needed.")
    assert sql("SELECT * FROM cct.accounts") == ()


def test_missing_file_is_named(empty_database: DatabaseServer) -> None:
    code, line = run(empty_database, SEED_FILE="/nowhere.csv")
    assert (code, line[:15]) == (1, "SEED_FILE /nowh")
    assert "No such file or directory" in line


def test_sigterm_ends_the_seeder_with_one_line(empty_database: DatabaseServer) -> None:
    process = start(empty_database, SEED_ACCOUNTS="10000000")
    assert process.stdout
    assert "inserted" in process.stdout.readline()  # so far
    process.terminate()
    assert end(process) == (1, "Stopped.")


def test_seeder_killed_at_any_moment_leaves_all_rows_or_none(empty_database: DatabaseServer, sql: Sql) -> None:
    chance = random.Random(20261124)
    for _ in range(10):
        process = start(empty_database, SEED_ACCOUNTS="20000")
        until(lambda: sql("SELECT 1 FROM information_schema.processlist WHERE user = 'seeder'"), "connected")
        time.sleep(chance.uniform(0, 0.4))  # it takes about as long
        process.kill()
        process.communicate()
        assert run(empty_database, SEED_ACCOUNTS="0")[0] == 0  # there is a table, and no lock
        assert sql("SELECT COUNT(*), MIN(id), MAX(id) FROM cct.accounts") in (((0, None, None),), ((20000, 1, 20000),))
        sql("DROP TABLE cct.accounts")


@pytest.mark.parametrize("count", [2, 10])
def test_seeders_at_once_seed_once(empty_database: DatabaseServer, sql: Sql, count: int) -> None:
    assert_seed_once(empty_database, count)


def assert_seed_once(database: DatabaseServer, count: int) -> None:
    """Run seeders at once; assert that one seeds and the others find its rows."""
    seeders = [start(database, SEED_ACCOUNTS="20000") for _ in range(count)]
    ends = sorted(end(seeder) for seeder in seeders)
    assert ends == [(0, "accounts has rows already: nothing to do")] * (count - 1) + [(0, "inserted 20000 accounts")]
    assert database.sql("SELECT COUNT(*), MIN(id), MAX(id) FROM cct.accounts") == ((20000, 1, 20000),)


@pytest.fixture
def galera(monkeypatch: pytest.MonkeyPatch) -> Iterator[DatabaseServer]:
    """Give a MariaDB server that is a Galera cluster of one node."""
    if not GALERA.exists():
        pytest.skip("needs Galera: apt-get install galera-4")
    port = free_port()
    options = {
        "wsrep-on": "ON",
        "wsrep-provider": GALERA,
        "wsrep-provider-options": f"gmcast.listen_addr=tcp://127.0.0.1:{port}",
        "wsrep-cluster-address": "gcomm://",
        "wsrep-node-address": f"127.0.0.1:{port}",
        "binlog-format": "ROW",
    }
    monkeypatch.setenv("DATABASE_SERVER", "mariadbd")
    with private_database() as database:
        database.stop()
        database.start(*(f"--{name}={value}" for name, value in options.items()))
        until(lambda: database.sql("SHOW STATUS LIKE 'wsrep_ready'") == (("wsrep_ready", "ON"),), "a cluster")
        yield database


def test_two_seeders_at_once_seed_once_in_a_galera_cluster(galera: DatabaseServer) -> None:
    assert_seed_once(galera, 2)
    ((_, transactions),) = galera.sql("SHOW STATUS LIKE 'wsrep_replicated'")
    assert int(transactions) >= 1  # it is a cluster


def test_waits_for_the_database(empty_database: DatabaseServer, sql: Sql) -> None:
    empty_database.stop()
    process = start(empty_database)
    with pytest.raises(subprocess.TimeoutExpired):
        process.communicate(timeout=1)
    empty_database.start()
    process.communicate(timeout=20)
    assert process.returncode == 0
    assert sql("SELECT * FROM cct.accounts") == HUNDRED


def test_database_that_is_cut_off_while_it_is_seeded_ends_in_one_message(empty_database: DatabaseServer) -> None:
    process = start(empty_database, SEED_ACCOUNTS="10000000", SEED_WAIT="2")
    assert process.stdout
    assert "inserted" in process.stdout.readline()  # so far
    with empty_database.hanging():
        began = time.monotonic()
        code, line = end(process)
        assert time.monotonic() - began < 5
    assert code == 1
    assert line.startswith(f"The database at 127.0.0.1:{empty_database.port} could not be seeded within 2 s: ")


def test_gives_up_after_seed_wait_with_one_line(empty_database: DatabaseServer) -> None:
    began = time.monotonic()
    port = str(free_port())
    code, line = run(empty_database, DB_PORT=port, SEED_WAIT="1")
    assert code == 1
    assert line.startswith(f"The database at 127.0.0.1:{port} could not be seeded within 1 s: ")
    assert time.monotonic() - began >= 1


def test_bad_setting_is_named(empty_database: DatabaseServer) -> None:
    sentence = "SEED_ACCOUNTS must be a whole number from 0 to 100000000, not '-1'."
    assert run(empty_database, SEED_ACCOUNTS="-1") == (1, sentence)


def test_memory_does_not_grow_with_the_rows(empty_database: DatabaseServer, sql: Sql) -> None:
    def peak(accounts: int) -> int:
        """Return the peak memory of a seeder in KiB."""
        process = start(empty_database, SEED_ACCOUNTS=str(accounts))
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        process.communicate()
        assert process.returncode == 0
        return usage.ru_maxrss // (1024 if sys.platform == "darwin" else 1)

    small = peak(2_000)
    sql("DROP TABLE cct.accounts")
    assert peak(200_000) < small + 4_096
