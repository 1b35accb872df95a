"""README.md and docs/ are true: each command that can run here runs as it is printed, and says what is printed."""

import os
import re
import shutil
import socket
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest

from settings import Settings
from tests.docker import docker, require_engine
from tests.helpers import ROOT

DOCS = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
PROJECTS = ("cct", "cct2")
BLOCK = re.compile(r"^```(console|sh|sh example)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MAY_DIFFER = {
    r"\d{4}-\d\d-\d\d[ T][\d:.]+( UTC|Z)|\d\d-\d\d-\d{4} [\d:]+": "<date>",
    r"\b[0-9a-f]{12}\b": "<id>",
    r"\b\d+\.\d+\.\d+\.\d+\b": "<address>",
    r"(?m)[ \t]+$": "",
}


def run(script: str, folder: Path) -> str:
    """Run commands of a document and return what they print; `watch` runs its command once."""
    command = ["bash", "-c", f'set -euo pipefail; watch() {{ shift 2; sh -c "$*"; }}\n{script}']
    done = subprocess.run(
        command, cwd=folder, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
    return done.stdout


def comparable(output: str) -> str:
    """Return an output without what differs from run to run."""
    for pattern, name in MAY_DIFFER.items():
        output = re.sub(pattern, name, output)
    return output.strip()


def require_free_names() -> None:
    """Skip the test where its containers, volumes or ports would be somebody's; fail it where REQUIRE_DOCKER=1."""
    try:
        for port in (5000, 5001):
            socket.create_server(("127.0.0.1", port)).close()
        for project in PROJECTS:
            assert not docker("compose", "--project-name", project, "ps", "--all", "--quiet")
            assert not docker("volume", "ls", "--quiet", "--filter", f"name=^{project}_")
    except (AssertionError, OSError):
        refuse = pytest.fail if os.environ.get("REQUIRE_DOCKER") == "1" else pytest.skip
        refuse(
            "needs ports 5000 and 5001, and no containers or volumes of the projects cct and cct2"
        )


@pytest.mark.parametrize("name", ["README.md", "docs/tour.md"])
def test_each_command_runs_and_says_what_is_printed(name: str, tmp_path: Path) -> None:
    require_engine()
    require_free_names()
    clone = shutil.copytree(
        ROOT, tmp_path / "cct", ignore=shutil.ignore_patterns(".git", ".venv", "node_modules")
    )
    try:
        for kind, text in BLOCK.findall((ROOT / name).read_text()):
            if kind == "sh":
                run(text, clone)
            elif kind == "console":
                for command, printed in re.findall(
                    r"^\$ (.+)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE
                ):
                    assert comparable(run(command, clone)) == comparable(printed), command
    finally:
        for project in PROJECTS:
            docker("compose", "--project-name", project, "down", "-v", cwd=clone)


@pytest.mark.parametrize("doc", DOCS, ids=lambda doc: doc.name)
def test_each_command_is_valid_and_each_link_and_each_test_exists(doc: Path) -> None:
    text = doc.read_text()
    for kind, commands in BLOCK.findall(text):
        script = "\n".join(re.findall(r"(?m)^\$ (.+)", commands)) if kind == "console" else commands
        subprocess.run(["bash", "-n"], input=script, check=True, text=True)
    for link in re.findall(r"\]\(([^)#]+)", text):
        assert "://" in link or (doc.parent / link).exists(), link
    for file, test in re.findall(r"`(test_\w+\.py)::(test_\w+)`", text):
        assert f"def {test}(" in (ROOT / "tests" / file).read_text(), test


def test_readme_is_short_and_names_each_setting_its_default_and_each_test_that_needs_an_engine() -> (
    None
):
    text = DOCS[0].read_text()
    assert len(text.split()) <= 1400
    for field in fields(Settings):
        default = f"{field.default:g}" if isinstance(field.default, float) else str(field.default)
        row = rf"(?m)^\| .*`{field.name.upper()}`.* \| .*{re.escape(f'`{default}`') if default else ''}"
        assert re.search(row, text), f"{field.name}: {default}"
    need = {
        f.name for f in ROOT.glob("tests/test_*.py") if "from tests.docker import" in f.read_text()
    }
    assert set(re.findall(r"`(test_\w+\.py)`", text)) == need
