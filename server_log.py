"""The log of the server: a thread writes the lines, so no request waits for stdout."""

import logging
import os
import threading
import time
from collections import deque
from functools import lru_cache

from aiohttp import web
from aiohttp.abc import AbstractAccessLogger
from aiohttp.http_exceptions import HttpProcessingError

from settings import TIME_FORMAT

QUIET_PATHS = ("/health", "/ready")  # asked every few seconds: only their failures are logged
MAX_PATH = 200  # characters of a path
MAX_LINES = 20_000  # lines that wait to be written
STDOUT = 1


class LogWriter(logging.Handler):
    """Writes lines to stdout, from a thread.

    A slow or full stdout never blocks or fails a request. Lines that cannot be written are
    counted, and the count is logged as soon as stdout works again.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waiting: deque[tuple[float, str]] = deque()  # time and text of each line
        self.lost = 0  # lines since the last report
        self.stopping = False
        self.wake = threading.Event()
        self.thread = threading.Thread(target=self.write_until_stopped, daemon=True)

    def start(self) -> None:
        """Take the records of `logging`, and start the thread."""
        logging.getLogger().addHandler(self)
        logging.getLogger().setLevel(logging.INFO)
        logging.getLogger("aiohttp.server").addFilter(is_news)
        logging.getLogger("asyncio").addFilter(is_news)
        self.thread.start()

    def stop(self) -> None:
        """Write the last lines; give up after a second."""
        self.stopping = True
        self.wake.set()
        self.thread.join(1.0)

    def emit(self, record: logging.LogRecord) -> None:
        """Add a record of `logging`, and have it written at once."""
        self.add(self.format(record))
        self.wake.set()

    def add(self, line: str) -> None:
        """Add a line. The thread writes it within a quarter of a second."""
        if len(self.waiting) < MAX_LINES:
            self.waiting.append((time.time(), line))
        else:
            self.lost += 1

    def write_until_stopped(self) -> None:
        """Write the waiting lines four times a second, and when a record of `logging` arrives."""
        while not self.stopping:
            self.wake.wait(0.25)
            self.wake.clear()
            self.write_waiting()
        self.write_waiting()

    def write_waiting(self) -> None:
        """Write all lines that wait now; count them as lost if stdout refuses them."""
        lines = [self.waiting.popleft() for _ in range(len(self.waiting))]
        try:
            self.report_lost_lines()
            write("".join(f"{utc_time(int(moment))} {line}\n" for moment, line in lines))
        except OSError:  # a full disk, for one
            self.lost += len(lines)

    def report_lost_lines(self) -> None:
        """Write how many lines were lost, if some were."""
        lost = self.lost
        if lost > 0:
            # The line break ends a line that was cut off.
            write(f"\n{utc_time(int(time.time()))} {lost} lines of this log were lost\n")
            self.lost -= lost


# With Python's own logging, the server would answer only 60 % as many requests a second.
class AccessLog(AbstractAccessLogger):
    """A line for each request, except for a 200 of /health or /ready."""

    def log(self, request: web.BaseRequest, response: web.StreamResponse, seconds: float) -> None:
        """Log a request and how long its answer took."""
        status = response.status
        if status == 200 and request.raw_path in QUIET_PATHS:
            return
        path = request.raw_path[:MAX_PATH]
        writer.add(f"{request.remote} {request.method} {path!a} {status} {seconds:.4f} s")


writer = LogWriter()  # the log of this process


def is_news(record: logging.LogRecord) -> bool:
    """Return whether to log a record: False if another line already reports the same event."""
    error = record.exc_info[1] if record.exc_info else None
    # aiohttp logs a traceback of a malformed request. The access log has the 400.
    is_malformed_request = isinstance(error, HttpProcessingError)
    # uvloop logs a traceback if TLS data arrives for a closed connection to the database. The log
    # already has the error of the query.
    is_late_data = isinstance(error, RuntimeError) and "SSL protocol" in record.getMessage()
    return not (is_malformed_request or is_late_data)


@lru_cache(maxsize=1)  # many lines have the same second
def utc_time(seconds: int) -> str:
    """Return a time of time.time() as text in UTC."""
    return time.strftime(TIME_FORMAT, time.gmtime(seconds))


def write(text: str) -> None:
    """Write all of a text to stdout; raise OSError if that fails."""
    rest = text.encode(errors="backslashreplace")
    while rest:
        written = os.write(STDOUT, rest)
        rest = rest[written:]
