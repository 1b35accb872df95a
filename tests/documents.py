"""The commands in README.md and docs/."""

import re

from tools import ROOT

# A block of commands. tests/engine/test_docs.py does not run a block of `sh example`: another test
# runs its commands, or they do not end, need something that is not here, or have names to replace.
# It runs a block of `sh watch` once, without `watch`.
BLOCK = re.compile(r"^```(console|sh|sh example|sh watch)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$ (.+)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)  # and what it prints
# A heading, a block of any kind, or a row of a table.
PART = re.compile(
    r"^#+ (?P<heading>[^\n]+)$"
    r"|^```(?P<kind>[^\n]+)\n(?P<block>.*?)^```$"
    r"|^\| (?P<row>[^|\n]+) \| `(?P<command>[^`\n]+)` \|",
    re.MULTILINE | re.DOTALL,
)


def commands_of(kind: str, text: str) -> list[tuple[str, str]]:
    """Return the commands of a block with their printed output. A block of sh is one command."""
    if kind == "console":
        return COMMAND.findall(text)
    return [(text, "")]


class Document:
    """The commands of a document, by name: its blocks of the kinds, and the rows of its tables.

    The name of a block is the heading above it. Blocks below the same heading are one. The name of
    a row is its first cell.
    """

    def __init__(self, path: str, *kinds: str) -> None:
        self.text = (ROOT / path).read_text()
        self.named = read_commands(self.text, kinds)
        self.used: set[str] = set()

    def commands(self, name: str) -> str:
        """Return the commands with a name, and remember that they were used."""
        self.used.add(name)
        return self.named[name]

    def unused(self) -> set[str]:
        """Return the names of the commands that were not used."""
        return self.named.keys() - self.used


def read_commands(text: str, kinds: tuple[str, ...]) -> dict[str, str]:
    """Return the commands of a document by name."""
    commands: dict[str, str] = {}
    heading = ""
    for part in PART.finditer(text):
        if part["heading"]:
            heading = part["heading"]
        elif part["row"]:
            commands[part["row"]] = part["command"]
        elif part["kind"] in kinds:
            commands[heading] = commands.get(heading, "") + part["block"]
    return commands


TASKS = Document("docs/tasks.md", "sh", "sh example")
