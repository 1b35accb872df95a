"""Programs beside the product: a private database, `make local`, waiting, a load of requests."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
