"""seed.py: what it writes, once, whole or not at all."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import seed
from tests.database import DatabaseServer, private_database
from tests.helpers import ROOT, free_port, until

NEEDED = "a line needs name and email, of 1 to 254 characters each, and no more."
GALERA = Path("/usr/lib/galera/libgalera_smm.so")


def start(database: DatabaseServer, **settings: str) -> subprocess.Popen[str]:
    command, env = (
        [sys.executable, f"{ROOT}/seed.py"],
        os.environ | database.env("seeder") | settings,
    )
    return subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for the end; return the exit code and the last line without its time."""
    line = process.communicate(timeout=60)[0].splitlines()[-1]
    return process.returncode, line.partition(" UTC ")[2] or line


def run(database: DatabaseServer, **settings: str) -> tuple[int, str]:
    return end(start(database, **settings))


def test_seeds_a_hundred_plausible_accounts_once(empty_database: DatabaseServer) -> None:
    assert run(empty_database) == (0, "inserted 100 accounts")
    names, emails = zip(*seed.generate(100), strict=True)
    assert empty_database.sql("SELECT * FROM cct.accounts") == tuple(
        zip(range(1, 101), names, emails, strict=True)
    )
    assert len(set(names)) == len(set(emails)) == 100
    assert {name.isascii() for name in names} == {True, False}
    empty_database.sql("DELETE FROM cct.accounts WHERE id = 7")
    empty_database.sql("UPDATE cct.accounts SET name = 'edited' WHERE id = 8")
    edited = empty_database.sql("SELECT * FROM cct.accounts")
    assert run(empty_database, SEED_ACCOUNTS="500") == (
        0,
        "accounts has rows already: nothing to do",
    )
    assert empty_database.sql("SELECT * FROM cct.accounts") == edited


def test_seeds_a_csv_file(empty_database: DatabaseServer, tmp_path: Path) -> None:
    file = tmp_path / "accounts.csv"
    file.write_text(
        '\ufeffemail,name\na@example.com,"Ada, ""the"" first"\n\nß@example.com,Łukasz\n',
        encoding="utf-8",
    )
    assert run(empty_database, SEED_FILE=str(file)) == (0, "inserted 2 accounts")
    accounts = (1, 'Ada, "the" first', "a@example.com"), (2, "Łukasz", "ß@example.com")
    assert empty_database.sql("SELECT * FROM cct.accounts") == accounts


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "line 1: the header must be name,email, not ''."),
        ("name,mail\n", "line 1: the header must be name,email, not 'name,mail'."),
        ("name,email\n,a@b\n", f"line 2: {NEEDED}"),
        ("name,email\nAda," + "x" * 255, f"line 2: {NEEDED}"),
        ("name,email\n" + "Ada,a@b\n" * 5000 + "Bob\n", f"line 5002: {NEEDED}"),
        ("name,email\nAda,a@b,c\n", f"line 2: {NEEDED}"),
        ('name,email\nAda,"a@b\n', "line 2: unexpected end of data."),
        (
            "name,email\nAda,\xff\n",
            "'utf-8' codec can't decode byte 0xff in position 15: invalid start byte.",
        ),
        (None, "No such file or directory"),
    ],
    ids=str.split("empty header name long row values quote bytes missing"),
)
def test_bad_csv_is_named_and_nothing_is_inserted(
    empty_database: DatabaseServer, tmp_path: Path, text: str | None, sentence: str
) -> None:
    file = tmp_path / "accounts.csv"
    if text is not None:
        file.write_text(text, encoding="latin-1")
    code, line = run(empty_database, SEED_FILE=str(file))
    assert code == 1
    assert str(file) in line
    assert sentence in line
    assert empty_database.sql("SELECT * FROM cct.accounts") == ()


def test_memory_does_not_grow_and_sigterm_ends_the_seeder_with_one_line(
    empty_database: DatabaseServer,
) -> None:
    process = start(empty_database, SEED_ACCOUNTS="100000000", SEED_WAIT="2")
    assert process.stdout
    pages: list[int] = []  # of memory
    end = time.monotonic() + 3  # longer than SEED_WAIT, which is for a database that hangs
    while len(pages) < 3 or time.monotonic() < end:
        assert "inserted" in process.stdout.readline()  # a hundred thousand more
        pages.append(int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]))
    process.terminate()
    assert process.communicate(timeout=60)[0] == "Stopped.\n"
    assert process.returncode == 1
    assert pages[-1] < pages[0] + 1024


def test_seeder_killed_at_any_moment_leaves_all_rows_or_none(
    empty_database: DatabaseServer,
) -> None:
    for moment in range(10):
        process = start(empty_database, SEED_ACCOUNTS="100000")
        until(
            lambda: process.poll() == 0 or empty_database.connections("seeder"),
            "connected or ended",
        )  # noqa: B023
        time.sleep(moment * 0.04)  # the last one is about when it ends
        process.kill()
        process.communicate()
        assert (
            run(empty_database, SEED_ACCOUNTS="100000")[0] == 0
        )  # it leaves a part of the rows as it is
        assert empty_database.sql("SELECT COUNT(*) FROM cct.accounts") == ((100000,),)
        empty_database.sql("DROP TABLE cct.accounts")


def assert_seed_once(database: DatabaseServer, count: int) -> None:
    """Run seeders at once; assert that one seeds and the others find its rows."""
    seeders = [start(database, SEED_ACCOUNTS="20000") for _ in range(count)]
    ends = sorted(end(seeder) for seeder in seeders)
    assert ends == [(0, "accounts has rows already: nothing to do")] * (count - 1) + [
        (0, "inserted 20000 accounts")
    ]
    assert database.sql("SELECT COUNT(*) FROM cct.accounts") == ((20000,),)


def test_seeders_at_once_seed_once(empty_database: DatabaseServer) -> None:
    assert_seed_once(empty_database, 10)


@pytest.mark.skipif(not GALERA.exists(), reason="needs Galera: apt-get install galera-4")
def test_two_seeders_at_once_seed_once_in_a_galera_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_SERVER", "mariadbd")
    with private_database() as cluster:  # of one node
        cluster.stop()
        cluster.start(
            *(
                "--wsrep-on=ON",
                f"--wsrep-provider={GALERA}",
                "--wsrep-cluster-address=gcomm://",
                "--binlog-format=ROW",
            ),
            f"--wsrep-provider-options=gmcast.listen_addr=tcp://127.0.0.1:{free_port()}",
            "--wsrep-node-address=127.0.0.1",
        )
        until(
            lambda: cluster.sql("SHOW STATUS LIKE 'wsrep_ready'") == (("wsrep_ready", "ON"),),
            "a cluster",
        )
        assert_seed_once(cluster, 2)


def test_waits_for_the_database(empty_database: DatabaseServer) -> None:
    empty_database.stop()
    process = start(empty_database)
    with pytest.raises(subprocess.TimeoutExpired):
        process.communicate(timeout=1)
    empty_database.start()
    assert end(process) == (0, "inserted 100 accounts")


def test_database_that_is_cut_off_while_it_is_seeded_ends_in_one_message(
    empty_database: DatabaseServer,
) -> None:
    process = start(empty_database, SEED_ACCOUNTS="10000000", SEED_WAIT="2")
    assert process.stdout
    assert "inserted" in process.stdout.readline()  # so far
    with empty_database.hanging():
        process.wait(5)
    code, line = end(process)
    assert code == 1
    assert line.startswith(
        f"The database at 127.0.0.1:{empty_database.port} could not be seeded (SEED_WAIT is 2 s): "
    )
