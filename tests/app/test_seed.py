"""seed.py: the accounts are written once, all or none."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import seed
from tools import ROOT
from tools.private_database import PrivateDatabase, private_database
from tools.waiting import free_port, until

RULE = "a line needs exactly name and email, each of 1 to 254 characters."
NOT_UTF_8 = "this is not UTF-8. Save it as UTF-8."
NOTHING_TO_DO = (0, "the table has rows already: nothing to do")
SELECT = "SELECT * FROM cct.accounts"
GALERA = Path("/usr/lib/galera/libgalera_smm.so")


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
    """Wait for the end of the seeder; return its exit code and its last line without the time."""
    output, _ = process.communicate(timeout=60)
    line = output.splitlines()[-1]
    return process.returncode, line.partition(" UTC ")[2] or line


def run(database: PrivateDatabase, **settings: str) -> tuple[int, str]:
    """Run the seeder; return its exit code and its last line."""
    return end(start(database, **settings))


# What it writes


def test_seeds_a_hundred_accounts(empty_database: PrivateDatabase) -> None:
    assert run(empty_database) == (0, "inserted 100 accounts")
    accounts = list(seed.generate(100))
    expected = tuple((id, *account) for id, account in enumerate(accounts, 1))
    assert empty_database.sql(SELECT) == expected


def test_generated_accounts_are_plausible() -> None:
    """All are different, and some names are not ASCII."""
    accounts = list(seed.generate(100))
    names = {name for name, _ in accounts}
    emails = {email for _, email in accounts}
    assert len(names) == len(emails) == 100
    assert {name.isascii() for name in names} == {True, False}


def test_rows_that_are_there_stay_as_they_are(empty_database: PrivateDatabase) -> None:
    run(empty_database)
    empty_database.sql("DELETE FROM cct.accounts WHERE id = 7")
    empty_database.sql("UPDATE cct.accounts SET name = 'edited' WHERE id = 8")
    edited = empty_database.sql(SELECT)
    assert run(empty_database, SEED_ACCOUNTS="500") == NOTHING_TO_DO
    assert empty_database.sql(SELECT) == edited


def test_seeds_a_csv_file(empty_database: PrivateDatabase, tmp_path: Path) -> None:
    """A spreadsheet writes such a file: byte order mark, other column order, quotes, empty line."""
    file = tmp_path / "accounts.csv"
    first = 'a@example.com,"Ada, ""the"" first"'
    second = "ß@example.com,Łukasz"
    file.write_text(f"\ufeffemail,name\r\n{first}\r\n\r\n{second}\r\n", encoding="utf-8")
    assert run(empty_database, SEED_FILE=str(file)) == (0, "inserted 2 accounts")
    assert empty_database.sql(SELECT) == (
        (1, 'Ada, "the" first', "a@example.com"),
        (2, "Łukasz", "ß@example.com"),
    )


def test_insert_follows_the_columns(empty_database: PrivateDatabase, tmp_path: Path) -> None:
    """With a new column in COLUMNS, seed.py loads a CSV file with that column."""
    for name in ("seed.py", "settings.py", "schema.sql"):
        shutil.copy(ROOT / name, tmp_path)
    program = tmp_path / "seed.py"
    columns = 'COLUMNS = ("name", "email"'
    assert columns in program.read_text()
    program.write_text(program.read_text().replace(columns, f'{columns}, "phone"'))
    schema = tmp_path / "schema.sql"
    column = "email VARCHAR(254) NOT NULL"
    schema.write_text(schema.read_text().replace(column, f"{column}, phone VARCHAR(254)"))
    file = tmp_path / "accounts.csv"
    file.write_text("phone,name,email\n555,Ada,ada@example.com\n")

    settings = empty_database.env("seeder") | {"SEED_FILE": str(file)}
    subprocess.run([sys.executable, program], env=os.environ | settings, check=True)
    assert empty_database.sql(SELECT) == ((1, "Ada", "ada@example.com", "555"),)


# Files that it refuses


BAD_FILES = {
    "empty": ("", "line 1: the header must be name,email, not ''."),
    "header": ("name,mail\n", "line 1: the header must be name,email, not 'name,mail'."),
    "no name": ("name,email\n,a@b\n", f"line 2: {RULE}"),
    "long email": ("name,email\nAda," + "x" * 255, f"line 2: {RULE}"),
    "no email": ("name,email\n" + "Ada,a@b\n" * 5000 + "Bob\n", f"line 5002: {RULE}"),
    "three values": ("name,email\nAda,a@b,c\n", f"line 2: {RULE}"),
    "open quote": ('name,email\nAda,"a@b\n', "line 2: unexpected end of data."),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_csv_file_is_named_with_its_line(
    empty_database: PrivateDatabase, tmp_path: Path, kind: str
) -> None:
    text, sentence = BAD_FILES[kind]
    file = tmp_path / "accounts.csv"
    file.write_text(text)
    assert run(empty_database, SEED_FILE=str(file)) == (1, f"{file}, {sentence}")
    assert empty_database.sql("SHOW TABLES FROM cct") == ()


@pytest.mark.parametrize(("encoding", "line"), [("latin-1", 4002), ("utf-16", 1)])
def test_csv_file_that_is_not_utf_8_is_named_with_its_line(
    empty_database: PrivateDatabase, tmp_path: Path, encoding: str, line: int
) -> None:
    file = tmp_path / "accounts.csv"
    text = "name,email\n" + "Ada,a@b\n" * 4000 + "Björn,b@c\n"
    file.write_text(text, encoding=encoding)
    sentence = f"{file}, line {line}: {NOT_UTF_8}"
    assert run(empty_database, SEED_FILE=str(file)) == (1, sentence)
    assert empty_database.sql("SHOW TABLES FROM cct") == ()


def test_missing_csv_file_is_named(empty_database: PrivateDatabase) -> None:
    reason = "[Errno 2] No such file or directory: '/nowhere.csv'"
    sentence = f"SEED_FILE /nowhere.csv cannot be read: {reason}."
    assert run(empty_database, SEED_FILE="/nowhere.csv") == (1, sentence)


def test_bad_csv_file_is_refused_even_if_there_are_rows(
    database: PrivateDatabase, tmp_path: Path
) -> None:
    file = tmp_path / "accounts.csv"
    file.write_text("name,email\nAda\n")
    before = database.sql(SELECT)
    assert run(database, SEED_FILE=str(file)) == (1, f"{file}, line 2: {RULE}")
    assert database.sql(SELECT) == before


def test_bad_csv_file_is_refused_without_the_database(
    empty_database: PrivateDatabase, tmp_path: Path
) -> None:
    file = tmp_path / "accounts.csv"
    file.write_text("name,email\nAda\n")
    nowhere = {"DB_PORT": str(free_port())}
    assert run(empty_database, SEED_FILE=str(file), **nowhere) == (1, f"{file}, line 2: {RULE}")


# All rows or none


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


def assert_seed_once(database: PrivateDatabase, count: int) -> None:
    """Run seeders at once; assert that one seeds and the others find its rows."""
    seeders = [start(database, SEED_ACCOUNTS="20000") for _ in range(count)]
    ends = [end(seeder) for seeder in seeders]
    assert ends.count((0, "inserted 20000 accounts")) == 1
    assert ends.count(NOTHING_TO_DO) == count - 1
    assert database.sql("SELECT COUNT(*) FROM cct.accounts") == ((20000,),)


def test_seeders_at_once_seed_once(empty_database: PrivateDatabase) -> None:
    assert_seed_once(empty_database, 10)


@pytest.mark.skipif(not GALERA.exists(), reason="needs Galera: apt-get install galera-4")
def test_two_seeders_at_once_seed_once_in_a_galera_cluster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DATABASE_SERVER", "mariadbd")

    def is_cluster() -> bool:
        return cluster.sql("SHOW STATUS LIKE 'wsrep_ready'") == (("wsrep_ready", "ON"),)

    with private_database() as cluster:  # of one node
        cluster.stop()
        cluster.start(
            "--wsrep-on=ON",
            f"--wsrep-provider={GALERA}",
            "--wsrep-cluster-address=gcomm://",
            "--binlog-format=ROW",
            f"--wsrep-provider-options=gmcast.listen_addr=tcp://127.0.0.1:{free_port()}",
            "--wsrep-node-address=127.0.0.1",
        )
        until(is_cluster, "a cluster")
        assert_seed_once(cluster, 2)


# Waiting and ending


def test_waits_for_the_database(empty_database: PrivateDatabase) -> None:
    with empty_database.stopped():
        process = start(empty_database)
        assert process.stdout
        assert "cannot seed yet: " in process.stdout.readline()
    assert end(process) == (0, "inserted 100 accounts")


def test_gives_up_after_seed_wait_with_one_sentence(empty_database: PrivateDatabase) -> None:
    port = free_port()
    code, line = run(empty_database, DB_PORT=str(port), SEED_WAIT="1")
    assert code == 1
    sentence = f"The database at 127.0.0.1:{port} could not be seeded (SEED_WAIT is 1 s): "
    assert line.startswith(sentence)


def test_database_that_hangs_ends_the_seeder_with_one_sentence(
    empty_database: PrivateDatabase,
) -> None:
    """The database hangs in the middle of the work."""
    process = start(empty_database, SEED_ACCOUNTS="10000000", SEED_WAIT="2")
    assert process.stdout
    assert "inserted" in process.stdout.readline()  # so far
    with empty_database.hanging():
        process.wait(5)
    code, line = end(process)
    assert code == 1
    place = f"127.0.0.1:{empty_database.port}"
    assert line.startswith(f"The database at {place} could not be seeded (SEED_WAIT is 2 s): ")


def memory(process: subprocess.Popen[str]) -> int:
    """Return the memory of a process, in pages."""
    return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])


def test_memory_does_not_grow_with_the_accounts(empty_database: PrivateDatabase) -> None:
    """The seeder would need minutes. SIGTERM stops it."""
    process = start(empty_database, SEED_ACCOUNTS="100000000", SEED_WAIT="2")
    assert process.stdout
    pages: list[int] = []
    end_of_watch = time.monotonic() + 3  # longer than SEED_WAIT, a limit for one batch
    while len(pages) < 3 or time.monotonic() < end_of_watch:
        assert "inserted" in process.stdout.readline()  # a hundred thousand more
        pages.append(memory(process))
    process.terminate()
    assert process.communicate(timeout=60)[0].endswith("Stopped.\n")
    assert process.returncode == 1
    assert pages[-1] < pages[0] + 1024  # 4 MiB
