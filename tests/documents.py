"""Commands in README.md and docs/. tests/platforms/document.py finds commands by their name."""

import re

from tools import ROOT

# A block of commands. test_docs.py does not run a block of `sh example`: another test runs its
# commands, or they do not end, need something that is not here, or have names to replace.
BLOCK = re.compile(r"^```(console|sh|sh example)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$ (.+)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)  # and what it prints


def commands_of(kind: str, text: str) -> list[tuple[str, str]]:
    """Return the commands of a block with their printed output. A block of sh is one command."""
    if kind == "console":
        return COMMAND.findall(text)
    return [(text, "")]


def task(title: str) -> str:
    """Return the commands of a task of docs/tasks.md."""
    text = (ROOT / "docs" / "tasks.md").read_text()
    _, _, rest = text.partition(f"# {title}\n")
    section, _, _ = rest.partition("\n#")
    commands = "".join(commands for _, commands in BLOCK.findall(section))
    assert commands, f"docs/tasks.md has no task {title!r}"
    return commands
