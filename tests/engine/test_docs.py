"""The documents are true: commands print what the document shows."""

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.documents import BLOCK, commands_of
from tests.shell import run_command
from tests.stack import copy_project, docker, require_engine
from tools import ROOT

EXECUTED = ["README.md", "docs/tour.md", "docs/tasks.md"]
PROJECT = "cct"
PORTS = (5000, 5001)

MAY_DIFFER = {
    r"\d{4}-\d\d-\d\d[ T][\d:.]+( UTC|Z)|\d\d-\d\d-\d{4} [\d:]+": "<date>",
    r"\b[0-9a-f]{12}\b": "<id>",
    r"\b\d+\.\d+\.\d+\.\d+\b": "<address>",
    r"(?m)[ \t]+$": "",
}


def comparable(output: str) -> str:
    """Return an output without times, ids and addresses, which differ from run to run."""
    for pattern, name in MAY_DIFFER.items():
        output = re.sub(pattern, name, output)
    return output.strip()


def require_free_names() -> None:
    """Skip the test if its ports or project are in use."""
    try:
        for port in PORTS:
            socket.create_server(("127.0.0.1", port)).close()
        assert not docker("compose", "--project-name", PROJECT, "ps", "--all", "--quiet")
        assert not docker("volume", "ls", "--quiet", "--filter", f"name=^{PROJECT}_")
    except (AssertionError, OSError):
        pytest.skip("needs ports 5000 and 5001, and no containers or volumes of cct")


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Copy the project for a document; remove its stack at the end."""
    require_engine()
    require_free_names()
    monkeypatch.setenv("AUTOHEAL_LABEL", PROJECT)  # other tests may have the default label
    folder = tmp_path / "cct"
    copy_project(folder)
    try:
        yield folder
    finally:
        docker("compose", "--project-name", PROJECT, "down", "-v", cwd=folder)


@pytest.mark.parametrize("name", EXECUTED)
def test_each_command_prints_what_the_document_shows(name: str, clone: Path) -> None:
    for kind, text in BLOCK.findall((ROOT / name).read_text()):
        if kind == "sh example":
            continue
        for command, printed in commands_of(kind, text):
            once = re.sub(r"^watch -n \d+", "eval", command)
            output = run_command("bash", "-euo", "pipefail", "-c", once, cwd=clone)
            if kind == "console":
                assert comparable(output) == comparable(printed), command
