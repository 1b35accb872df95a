"""The documents are true: links, settings and tests exist."""

import re
from pathlib import Path

import pytest

from settings import Settings
from tests.documents import BLOCK, commands_of
from tests.shell import run_command
from tools import ROOT

DOCS = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]


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
    """A link to a line names a part of that line."""
    for label, link in re.findall(r"\[([^\]]*)\]\(([^)]+)\)", doc.read_text()):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = doc.parent / file if file else doc
        assert target.exists(), link
        if re.fullmatch(r"L\d+", anchor):
            line = target.read_text().splitlines()[int(anchor[1:]) - 1]
            assert label.strip("`") in line, f"{link}: {line}"
        elif anchor:
            assert anchor in anchors(target), link


def test_each_link_in_a_program_exists() -> None:
    """For example, the healer's message names a place in docs/tasks.md."""
    links = []
    yaml = [*ROOT.glob("*.yml"), *ROOT.glob("deploy/**/*.yml")]
    for program in [*yaml, *ROOT.glob("*.py"), *ROOT.glob("db/*")]:
        links += re.findall(r"\b(docs/\w+\.md)#([\w-]+)", program.read_text())
    assert links
    for file, anchor in links:
        assert anchor in anchors(ROOT / file), f"{file}#{anchor}"


@pytest.mark.parametrize("doc", DOCS, ids=lambda doc: doc.name)
def test_each_named_test_exists(doc: Path) -> None:
    for file, name in re.findall(r"`([\w/]+\.py)::(\w+)`", doc.read_text()):
        path = ROOT / "tests" / file.removeprefix("tests/")
        assert path.exists(), file
        assert f"def {name}(" in path.read_text(), f"{file}::{name}"


def test_each_promise_names_its_test() -> None:
    """It names the test, or the file if several tests prove it."""
    promises, _, _ = (ROOT / "docs" / "promises.md").read_text().partition("## Decisions")
    lines = [line for line in promises.splitlines() if line.startswith("- ")]
    assert lines
    for line in lines:
        end = re.search(r"`([\w/]+\.py)(::test_\w+)?`$", line)
        assert end, line
        assert (ROOT / "tests" / end[1]).exists(), line


def test_readme_names_each_setting_and_its_default() -> None:
    readme = (ROOT / "README.md").read_text()
    defaults = vars(Settings({"DB_USER": "x", "DB_PASSWORD": "x"}))
    defaults |= {"db_user": "", "db_password": ""}
    for name, default in defaults.items():
        row = re.search(rf"(?m)^\| .*`{name.upper()}`.* \|.*$", readme)
        assert row, name
        value = f"{default:g}" if isinstance(default, float) else str(default)
        assert value == "" or f"`{value}`" in row.group(), f"{name}: {value}"
