"""The commands of a document, by name."""

import re

from tools import ROOT

ROW = re.compile(r"\| ([^|]+) \| `([^`]+)` \|")


class Document:
    """The commands of a document: its blocks of sh, and the rows of its tables.

    The name of a block is the heading above it. Blocks below the same heading are one. The name of
    a row is its first cell. A block of "sh example" is left out.
    """

    def __init__(self, path: str) -> None:
        self.text = (ROOT / path).read_text()
        self.named = read_commands(self.text)
        self.used: set[str] = set()

    def commands(self, name: str) -> str:
        """Return the commands with a name, and remember that they were used."""
        self.used.add(name)
        return self.named[name]

    def unused(self) -> set[str]:
        """Return the names of the commands that were not used."""
        return self.named.keys() - self.used


def read_commands(text: str) -> dict[str, str]:
    """Return the commands of a document by name."""
    commands: dict[str, str] = {}
    heading = ""
    fence = ""  # the line that opened the block, empty outside of a block
    for line in text.splitlines():
        row = ROW.match(line)
        if line.startswith("```"):
            fence = "" if fence else line
        elif fence == "```sh":
            commands[heading] = commands.get(heading, "") + f"{line}\n"
        elif fence:
            continue
        elif line.startswith("#"):
            heading = line.lstrip("# ")
        elif row:
            commands[row[1]] = row[2]
    return commands
