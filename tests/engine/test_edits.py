"""`docker compose watch`: an edited file gets into the running stack."""

import json
import subprocess
from pathlib import Path

from tests.stack import Stack
from tools.waiting import until


def test_watch_shows_an_edited_page(stack: Stack) -> None:
    page = stack.folder / "page" / "page.html"
    original = page.read_text()
    watch = ["docker", "compose", "watch", "--no-up"]
    with subprocess.Popen(
        watch, cwd=stack.folder, env=stack.env, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout
            assert "Watch enabled" in process.stdout.readline()
            page.write_text(original.replace("<h1>", "<h1>Edited "))
            until(lambda: "<h1>Edited " in stack.get()[1], "shown")
        finally:
            process.terminate()
    page.write_text(original)
    stack.compose("up", "-d", "--build", "--wait")


def test_watch_sees_exactly_what_is_in_the_image(stack: Stack) -> None:
    config = json.loads(stack.compose("config", "--format", "json"))
    watched = {Path(rule["path"]).name for rule in config["services"]["app"]["develop"]["watch"]}
    copied = set(stack.exec("app", "ls").split()) - {"__pycache__"}
    assert watched == copied | {"requirements.txt"}  # the list of the packages
