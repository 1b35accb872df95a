"""The fixture of the tests with an engine."""

from collections.abc import Iterator

import pytest

from tests.stack import Stack, running_stack


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Yield a running stack, one for each worker of pytest.

    The test files use the stack in any order. Each test leaves it healthy, with accounts, and with
    its original settings.
    """
    with running_stack(tmp_path_factory.mktemp("stack") / "cct") as stack:
        yield stack
