"""Tools for the tests and the bench: a private database, `make local`, waiting, load."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
