"""server_log.py: the lines of the log, and a log that cannot be written."""

import logging
import os
import re
import subprocess
import sys
import time
from calendar import timegm
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from server_log import is_news

from settings import TIME_FORMAT
from tests.app.conftest import ServerProcess, StartServer
from tools import ROOT
from tools.private_database import PrivateDatabase
from tools.waiting import free_port, get, until

PAGE = 4096  # bytes; a small disk gives a file its space in pages


def test_log_tells_the_story(server: ServerProcess) -> None:
    """Successful probes are not logged."""
    assert server.get("/health")[0] == 200
    assert server.get("/")[0] == 200
    assert server.get("/ready")[0] == 200
    assert server.get("/?after=%1b[31mx")[0] == 400
    assert server.get("/make-unhealthy")[0] == 200
    assert server.get("/health")[0] == 503
    server.process.terminate()
    assert server.process.wait(10) == 0
    story = [re.sub(r"\d\.\d{4} s$", "TIME", line) for line in server.lines()]
    assert story[0].endswith(" starts")
    assert story[1:] == [
        f"listening on 127.0.0.1:{server.port}",
        "127.0.0.1 GET '/' 200 TIME",
        "127.0.0.1 GET '/?after=%1b[31mx' 400 TIME",
        "made unhealthy by GET /make-unhealthy from 127.0.0.1",
        "127.0.0.1 GET '/make-unhealthy' 200 TIME",
        "127.0.0.1 GET '/health' 503 TIME",
        "stopping",
        "stopped",
    ]


def test_path_in_the_log_is_short(server: ServerProcess) -> None:
    server.get("/" + "x" * 5000)
    shown = "/" + "x" * 199
    server.wait_for(f" GET '{shown}' 404 ")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a folder on a disk of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("needs root, to mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_full_disk_fails_no_request_and_is_logged(
    start_server: StartServer, small_disk: Path
) -> None:
    """When the disk has space again, one line tells the number of lost lines."""
    server = start_server(log=small_disk / "log")
    other = small_disk / "other"
    with pytest.raises(OSError, match="No space left"):
        other.write_bytes(bytes(64 * 1024))
    paths = [f"/nothing/{number}" for number in range(200)]
    for path in paths:
        assert server.get(path)[0] == 404
    until(lambda: server.log.stat().st_size == PAGE, "full")
    assert server.get("/health") == (200, "healthy\n")

    other.unlink()
    server.wait_for(" lines of this log were lost")
    before = int(time.time())
    assert server.get("/later")[0] == 404
    server.wait_for("GET '/later' 404 ")

    log = server.log.read_text()
    losses = re.findall(r"(?m)^.* UTC (\d+) lines of this log were lost$", log)
    written = [path for path in paths if f" GET '{path}' 404 " in log]
    assert len(losses) == 1
    assert 0 < int(losses[0]) <= len(paths)
    assert int(losses[0]) + len(written) >= len(paths)
    last = log.splitlines()[-1]
    shown = time.strptime(last[:23], TIME_FORMAT)
    assert before <= timegm(shown) <= time.time()
    server.process.terminate()
    assert server.process.wait(5) == 0
    assert server.lines()[-1] == "stopped"


@contextmanager
def server_with_stdout(
    database: PrivateDatabase, stdout: int
) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Start a server that logs to `stdout`; yield its port and process. A pipe takes 4 KiB."""
    port = free_port()
    own = {"HOST": "127.0.0.1", "PORT": str(port)}
    with subprocess.Popen(
        [sys.executable, f"{ROOT}/server.py"],
        env=os.environ | database.env("app") | own,
        stdout=stdout,
        stderr=subprocess.DEVNULL,
        pipesize=4096,
    ) as process:
        try:
            until(lambda: get(port, "/health")[0] == 200, "up", 10)
            yield port, process
        finally:
            process.kill()


def test_full_stdout_fails_no_request(database: PrivateDatabase) -> None:
    """SIGTERM still ends the server, with exit code 0."""
    with (
        Path("/dev/full").open("wb") as full,
        server_with_stdout(database, full.fileno()) as (port, process),
    ):
        for _ in range(20):
            assert get(port)[0] == 200
        process.terminate()
        assert process.wait(5) == 0


def test_stdout_that_nobody_reads_blocks_no_request(database: PrivateDatabase) -> None:
    """SIGTERM still ends the server."""
    with server_with_stdout(database, subprocess.PIPE) as (port, process):
        for _ in range(60):  # the lines of twenty requests fill the pipe
            assert get(port, "/" + "x" * 200)[0] == 404
        assert get(port, "/health") == (200, "healthy\n")
        process.terminate()
        assert process.wait(5) == 0


def test_late_tls_data_has_no_traceback_in_the_log() -> None:
    """uvloop logs a traceback if data arrives on a closed connection. The filter drops it."""
    error = RuntimeError("unable to perform operation on a closed transport")
    exception = (type(error), error, None)
    late = logging.LogRecord(
        "asyncio", logging.ERROR, "", 0, "Fatal error on SSL protocol", None, exception
    )
    other = logging.LogRecord("asyncio", logging.ERROR, "", 0, "Other", None, exception)
    assert not is_news(late)
    assert is_news(other)
