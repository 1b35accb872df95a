"""Tools for the tests and the bench: a private database, `make local`, waiting."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
