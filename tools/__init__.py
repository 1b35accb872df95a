"""Tools for the tests: a private database, `make local`, waiting."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
