"""`docker compose watch`: an edited file gets into the running stack."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.stack import Stack
from tools.waiting import until


@contextmanager
def watched(stack: Stack) -> Iterator[list[str]]:
    """Run `docker compose watch`, and yield a list. After the context, the list has the output."""
    lines: list[str] = []
    command = ["docker", "compose", "watch", "--no-up"]
    with subprocess.Popen(
        command,
        cwd=stack.folder,
        env=stack.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as watch:
        assert watch.stdout
        try:
            while "Watch enabled" not in "".join(lines):
                line = watch.stdout.readline()
                assert line, lines  # else the command has ended
                lines.append(line)
            yield lines
        finally:
            watch.terminate()
            lines += watch.stdout.readlines()


def test_watch_shows_an_edited_page(stack: Stack) -> None:
    page = stack.folder / "page" / "page.html"
    original = page.read_text()
    with watched(stack):
        page.write_text(original.replace("<h1>", "<h1>Edited "))
        until(lambda: "<h1>Edited " in stack.get()[1], "shown")
    page.write_text(original)
    stack.compose("up", "-d", "--build", "--wait")


def test_watch_ignores_what_is_in_no_image(stack: Stack) -> None:
    """Only the last of six changed files is in an image: there is one rebuild."""
    (stack.folder / ".git").mkdir()
    program = stack.folder / "server.py"
    original = program.read_text()
    with watched(stack) as lines:
        for name in ("README.md", "docs/tour.md", "backup.sql", "my.csv", ".git/changed"):
            with (stack.folder / name).open("a") as file:
                file.write("changed\n")
        time.sleep(1)  # watch collects changes for half a second
        program.write_text(original.replace('"ready"', '"ready now"'))
        until(lambda: stack.get("/ready")[1] == "ready now\n", "shown")
    assert len([line for line in lines if line.startswith("Rebuilding service")]) == 1
    program.write_text(original)
    shutil.rmtree(stack.folder / ".git")
    stack.compose("up", "-d", "--build", "--wait")
