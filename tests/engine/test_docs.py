"""The documents are true: commands print what the document shows, links and tests exist.

Only the first test needs an engine.
"""

import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from settings import Settings
from tests.engine.documents import BLOCK
from tests.shell import run_command
from tests.stack import NOT_COPIED, docker, require_engine
from tools import ROOT

DOCS = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
EXECUTED = ["README.md", "docs/tour.md", "docs/tasks.md"]
PROJECT = "cct"
PORTS = (5000, 5001)

COMMAND = re.compile(r"^\$ (.+)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)  # and what it prints
MAY_DIFFER = {
    r"\d{4}-\d\d-\d\d[ T][\d:.]+( UTC|Z)|\d\d-\d\d-\d{4} [\d:]+": "<date>",
    r"\b[0-9a-f]{12}\b": "<id>",
    r"\b\d+\.\d+\.\d+\.\d+\b": "<address>",
    r"(?m)[ \t]+$": "",
}


def commands_of(kind: str, text: str) -> list[tuple[str, str]]:
    """Return the commands of a block with their printed output. A block of sh is one command."""
    if kind == "console":
        return COMMAND.findall(text)
    return [(text, "")]


def comparable(output: str) -> str:
    """Return an output without times, ids and addresses, which differ from run to run."""
    for pattern, name in MAY_DIFFER.items():
        output = re.sub(pattern, name, output)
    return output.strip()


def require_free_names() -> None:
    """Skip the test if its ports or project are in use; fail it if REQUIRE_DOCKER=1."""
    try:
        for port in PORTS:
            socket.create_server(("127.0.0.1", port)).close()
        assert not docker("compose", "--project-name", PROJECT, "ps", "--all", "--quiet")
        assert not docker("volume", "ls", "--quiet", "--filter", f"name=^{PROJECT}_")
    except (AssertionError, OSError):
        refuse = pytest.fail if os.environ.get("REQUIRE_DOCKER") == "1" else pytest.skip
        refuse("needs ports 5000 and 5001, and no containers or volumes of cct")


@pytest.fixture
def clone(tmp_path: Path) -> Iterator[Path]:
    """Copy the project for a document; remove its stack at the end."""
    require_engine()
    require_free_names()
    folder = tmp_path / "cct"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*NOT_COPIED))
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
            output = run_command("bash", "-euo", "pipefail", "-c", command, cwd=clone)
            if kind == "console":
                assert comparable(output) == comparable(printed), command


@pytest.mark.parametrize("doc", DOCS, ids=lambda doc: doc.name)
def test_each_command_is_valid(doc: Path) -> None:
    for kind, text in BLOCK.findall(doc.read_text()):
        for command, _ in commands_of(kind, text):
            run_command("bash", "-n", stdin=command)


def anchors(doc: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"(?m)^#+ (.+)$", doc.read_text())
    words = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {word.replace(" ", "-") for word in words}


@pytest.mark.parametrize("doc", DOCS, ids=lambda doc: doc.name)
def test_each_link_exists(doc: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", doc.read_text()):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = doc.parent / file if file else doc
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_each_link_in_a_program_exists() -> None:
    """For example, the healer's message names a place in docs/tasks.md."""
    for program in [*ROOT.glob("*.yml"), *ROOT.glob("*.py"), *ROOT.glob("d*/*.*")]:
        if program.suffix == ".png":
            continue
        for file, anchor in re.findall(r"\b(docs/\w+\.md)#([\w-]+)", program.read_text()):
            assert anchor in anchors(ROOT / file), f"{program.name}: {file}#{anchor}"


@pytest.mark.parametrize("doc", DOCS, ids=lambda doc: doc.name)
def test_each_named_test_exists(doc: Path) -> None:
    for file, name in re.findall(r"`([\w/]+\.py)::(\w+)`", doc.read_text()):
        path = ROOT / "tests" / file.removeprefix("tests/")
        assert path.exists(), file
        assert f"def {name}(" in path.read_text(), f"{file}::{name}"


def test_each_promise_in_a_table_names_its_test() -> None:
    lines = (ROOT / "docs" / "promises.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| ") and not line.endswith("| test |")]
    assert rows
    for row in rows:
        assert re.search(r"`[\w/]+\.py::test_\w+` \|$", row), row


def test_readme_names_each_setting_and_its_default() -> None:
    readme = (ROOT / "README.md").read_text()
    defaults = vars(Settings({"DB_USER": "x", "DB_PASSWORD": "x"}))
    defaults |= {"db_user": "", "db_password": ""}
    for name, default in defaults.items():
        row = re.search(rf"(?m)^\| .*`{name.upper()}`.* \|.*$", readme)
        assert row, name
        value = f"{default:g}" if isinstance(default, float) else str(default)
        assert value == "" or f"`{value}`" in row.group(), f"{name}: {value}"
