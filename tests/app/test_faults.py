"""Two hundred faults of the database. The server recovers, and leaks nothing."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from asyncmy.errors import MySQLError

from tests.app.conftest import StartServer, linux
from tools.private_database import PrivateDatabase
from tools.waiting import until


@linux
def test_two_hundred_faults_leave_nothing_behind(
    database: PrivateDatabase, start_server: StartServer
) -> None:
    """In each fault, the database hangs. Before every second fault, all connections are killed."""
    server = start_server(DB_TIMEOUT="0.1")
    paths = ["/", "/", "/?after=1", "/?after=2", "/?after=3", "/?after=4"]

    def ask_for_pages() -> set[int]:
        """Ask six times at once, twice for the same page; return the statuses of the answers."""
        with ThreadPoolExecutor() as threads:
            answers = list(threads.map(server.get, paths))
        return {status for status, _ in answers}

    def cause_faults(count: int) -> None:
        """Make the database hang and recover, `count` times."""
        for number in range(count):
            if number % 2:  # the server must connect while nothing answers
                kill_connections(database)
            with database.hanging():
                assert ask_for_pages() == {503}
            until(lambda: ask_for_pages() == {200}, "recovered")

    cause_faults(100)
    files = server.open_files()
    kibibytes = server.peak_memory()
    cause_faults(100)
    until(lambda: server.open_files() <= files + 4, "all sockets closed", 10)
    assert server.peak_memory() <= kibibytes + 16_384  # a leak in each fault would need more
    until(lambda: len(database.connections()) <= 4, "all connections closed", 10)
    assert "Traceback" not in server.log.read_text()
    assert "never retrieved" not in server.log.read_text()
    server.process.terminate()
    assert server.process.wait(10) == 0


def kill_connections(database: PrivateDatabase) -> None:
    """End all connections of the app to the database."""
    for connection in database.connections():
        with suppress(MySQLError):  # it has ended meanwhile
            database.sql(f"KILL {connection}")
